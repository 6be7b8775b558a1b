"""DENSE (arXiv 2112.12371): a generator invents examples against the clients' ensemble, a student learns its answers.

Data-free: the server needs the clients' models alone. Two stages alternate. A generator, started afresh, learns to make
a batch that the ensemble puts into given classes and on which student and ensemble disagree; then the student is
trained on all batches so far. The paper's third term, the statistics of batch normalisation layers, has nothing to act
on in networks that have none, like those of FedFisher's experiments, and is left out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._augment import crop_and_flip
from .._examples import Examples
from .._likelihood import Likelihood
from .._trees import weighted_sum
from ..models._generator import Generator
from ..tracing._convolution import for_loops
from ._outline import BOUNDS, TAKES_ANY, one_input, outline
from ._rule import Merged, Payload, Rule, Takes, Update

PyTree = Any


@dataclasses.dataclass(frozen=True)
class DenseSettings:
    """The settings of the distillation; the defaults are reduced to minutes on a CPU.

    Attributes:
        rounds: how often a batch is made and the student trained.
        generator_steps: updates of the generator, and of the noise it starts from, per batch.
        batch_size: examples of a batch, made and learned from.
        noise: how many random numbers an example is made from.
        width: the generator's number of channels.
        generator_rate: the learning rate of the generator's Adam(0.5, 0.999).
        adversarial: the factor of the disagreement of student and ensemble.
        learning_rate: the learning rate of the student's SGD with momentum 0.9.
        temperature: the number that divides outputs in what the student learns.
        bounds: smallest and largest entry of an example; None takes those of the clients' data, which they then tell.
        augment: crop and flip images in the generator's loss, flip them in the student's.
        seed: what all random draws follow from.
    """

    rounds: int = 20
    generator_steps: int = 30
    batch_size: int = 128
    noise: int = 64
    width: int = 16
    generator_rate: float = 1e-3
    adversarial: float = 0.5
    learning_rate: float = 0.01
    temperature: float = 20.0
    bounds: tuple[float, float] | None = None
    augment: bool = True
    seed: int = 0


# The FedFisher authors' run of DENSE. Its examples have entries from 0 to 1 although its networks were trained on
# normalised images, an oversight of theirs.
RELEASED_DENSE = DenseSettings(batch_size=256, noise=256, width=64, bounds=(0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class MeasureBounds:
    """Measures parameters, and the smallest and largest entry of the inputs unless they are given."""

    given: bool

    def __call__(self, update: Update, data: Examples, key: Any) -> Payload:
        """One client's payload."""
        del key
        params = update.params
        if self.given:
            return outline(params, data)
        rows = one_input(data)[data.indices]
        valid = (jnp.arange(rows.shape[0]) < data.size).reshape(-1, *[1] * (rows.ndim - 1))
        low, high = jnp.min(jnp.where(valid, rows, jnp.inf)), jnp.max(jnp.where(valid, rows, -jnp.inf))
        return outline(params, data, low=low, high=high)


def dense(
    apply: Callable,
    likelihood: Likelihood,
    *,
    settings: DenseSettings | None = None,
    validation: Callable[[PyTree], jax.Array] | None = None,
) -> Rule:
    """Make DENSE's rule (arXiv 2112.12371): the clients' weighted average learns from their ensemble's mean outputs.

    Args:
        apply: (params, x [n, ...]) → outputs [n, C]; inputs are arrays of floats.
        likelihood: what was fitted; only categorical will do.
        settings: default `DenseSettings()`; `RELEASED_DENSE` is what the FedFisher authors run.
        validation: params → score; the student that scores best after a round is returned, as in the released code with
            500 labelled examples. Without it, and without labels, the last one is.

    Raises:
        ValueError: the likelihood is another one, or a count is below 1.
    """
    chosen = settings or DenseSettings()
    if likelihood.name != "categorical":
        raise ValueError(f"likelihood: got {likelihood.name}, expected categorical: examples are made for classes")
    for name in ("rounds", "generator_steps", "batch_size", "noise", "width"):
        if getattr(chosen, name) < 1:
            raise ValueError(f"settings: got {name}={getattr(chosen, name)}, expected at least 1")

    def solve(payloads: Payload, start: PyTree) -> Merged:
        shares = payloads.weight / jnp.sum(payloads.weight)
        student = weighted_sum(shares, payloads.params)
        return _distil(_setting(apply, chosen, payloads, shares, student), validation, student)

    given = chosen.bounds is not None
    takes = TAKES_ANY if given else Takes((dict,), (BOUNDS,))
    return Rule("dense", MeasureBounds(given), lambda payload, start: payload, solve, "stack", takes=takes)


class Setting(NamedTuple):
    """What every step of the distillation reads.

    Attributes:
        settings: the rule's settings.
        model: (params, x [n, ...]) → outputs [n, C].
        teacher: x [n, ...] → outputs [n, C] of the clients' ensemble.
        init: (key, noise) → the generator's parameters.
        generate: (the generator's parameters, noise [n, ...]) → examples [n, ...].
        example: shape and type of one example.
        classes: the number C of outputs.
    """

    settings: DenseSettings
    model: Callable[[PyTree, Any], jax.Array]
    teacher: Callable[[Any], jax.Array]
    init: Callable[[jax.Array, Any], PyTree]
    generate: Callable[[PyTree, Any], jax.Array]
    example: jax.ShapeDtypeStruct
    classes: int

    def augmented(self, transform: Callable, key: jax.Array, x: Any) -> Any:
        """Transform each example with its own key, where they are images."""
        if not (self.settings.augment and len(self.example.shape) == 3):
            return x
        return jax.vmap(transform)(jax.random.split(key, x.shape[0]), x)

    @property
    def pupil(self) -> optax.GradientTransformation:
        """The student's optimiser."""
        return optax.sgd(self.settings.learning_rate, 0.9)


def _setting(apply: Callable, s: DenseSettings, payloads: Payload, shares: Any, start: PyTree) -> Setting:
    told = payloads.statistics
    shape, dtype = told["example"].shape[2:], told["example"].dtype
    low, high = (jnp.min(told["low"]), jnp.max(told["high"])) if s.bounds is None else jnp.asarray(s.bounds, dtype)
    network, model = Generator(shape, s.width), for_loops(apply)

    def teacher(x: Any) -> jax.Array:
        outputs = jax.lax.map(lambda params: model(params, x), payloads.params)  # one after the other: memory of one
        return jnp.tensordot(shares.astype(outputs.dtype), outputs, axes=1)

    generate = for_loops(lambda p, z: (low + (high - low) * jnp.asarray(network.apply({"params": p}, z))).astype(dtype))
    init = lambda key, noise: network.init(key, noise)["params"]  # noqa: E731
    classes = jax.eval_shape(apply, start, jax.ShapeDtypeStruct((1, *shape), dtype)).shape[-1]
    return Setting(s, model, teacher, init, generate, jax.ShapeDtypeStruct(shape, dtype), classes)


def _make(here: Setting, student: PyTree, key: jax.Array) -> tuple[Any, jax.Array]:
    """Make a batch of examples, the one of least loss that the generator came by; return it with that loss."""
    s, dtype = here.settings, here.example.dtype
    maker = optax.adam(s.generator_rate, b1=0.5, b2=0.999)
    init_key, noise_key, class_key, step_key = jax.random.split(key, 4)
    noise = jax.random.normal(noise_key, (s.batch_size, s.noise), dtype)
    state: Any = (here.init(init_key, noise), noise)
    targets = jax.random.randint(class_key, (s.batch_size,), 0, here.classes)

    def loss(state: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        made = here.generate(*state)
        x = here.augmented(crop_and_flip(), key, made)
        return generator_loss(here.teacher(x), here.model(student, x), targets, s.adversarial), made

    def step(number: Any, carry: tuple) -> tuple:
        state, inner, best, least = carry
        (value, made), slope = jax.value_and_grad(loss, has_aux=True)(state, jax.random.fold_in(step_key, number))
        updates, inner = maker.update(slope, inner, state)
        best, least = jnp.where(value < least, made, best), jnp.minimum(value, least)
        return optax.apply_updates(state, updates), inner, best, least

    empty = jnp.zeros((s.batch_size, *here.example.shape), dtype)
    begin = (state, maker.init(state), empty, jnp.asarray(jnp.inf, jax.eval_shape(loss, state, key)[0].dtype))
    _, _, best, least = jax.lax.fori_loop(0, s.generator_steps, step, begin)
    return best, least


def _learn(here: Setting, number: Any, student: PyTree, inner: Any, pool: Any, key: jax.Array) -> tuple:
    """Take the student once over the batches 0 … number in a random order; return it, its optimiser, its mean loss."""
    s = here.settings
    order_key, flip_key = jax.random.split(key)
    rank = jax.random.uniform(order_key, pool.shape[:1], jnp.float32)
    order = jnp.argsort(jnp.where(jnp.arange(pool.shape[0]) < (number + 1) * s.batch_size, rank, jnp.inf))

    def loss(p: PyTree, x: Any) -> jax.Array:
        answers = jax.lax.stop_gradient(here.teacher(x)) / s.temperature
        return s.temperature**2 * jnp.mean(divergence(here.model(p, x) / s.temperature, answers))

    def step(index: Any, carry: tuple) -> tuple:
        p, inner, total = carry
        rows = jax.lax.dynamic_slice_in_dim(order, index * s.batch_size, s.batch_size)
        x = here.augmented(crop_and_flip(0), jax.random.fold_in(flip_key, index), pool[rows])
        value, slope = jax.value_and_grad(loss)(p, x)
        updates, inner = here.pupil.update(slope, inner, p)
        return optax.apply_updates(p, updates), inner, total + value

    zero = jnp.zeros((), jax.eval_shape(loss, student, pool[: s.batch_size]).dtype)
    student, inner, total = jax.lax.fori_loop(0, number + 1, step, (student, inner, zero))
    return student, inner, total / (number + 1)


def _distil(here: Setting, validation: Callable | None, start: PyTree) -> Merged:
    """Let generator and student take turns; the best student by `validation`, or the last one."""
    s = here.settings

    def turn(number: Any, carry: tuple) -> tuple:
        student, inner, pool, best, score, _ = carry
        make_key, learn_key = jax.random.split(jax.random.fold_in(jax.random.key(s.seed), number))
        batch, made = _make(here, student, make_key)
        pool = jax.lax.dynamic_update_slice_in_dim(pool, batch, number * s.batch_size, 0)
        student, inner, learned = _learn(here, number, student, inner, pool, learn_key)
        if validation is None:
            return student, inner, pool, student, score, (made, learned)
        new = validation(student).astype(jnp.float32)
        best = jax.tree.map(lambda old, now: jnp.where(new > score, now, old), best, student)
        return student, inner, pool, best, jnp.where(new > score, new, score), (made, learned)

    pool = jnp.zeros((s.rounds * s.batch_size, *here.example.shape), here.example.dtype)
    inner, score = here.pupil.init(start), jnp.asarray(-jnp.inf, jnp.float32)
    types = jax.eval_shape(lambda: turn(0, (start, inner, pool, start, score, None))[-1])
    losses = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), types)
    *_, best, score, (made, learned) = jax.lax.fori_loop(0, s.rounds, turn, (start, inner, pool, start, score, losses))
    diagnostics = {"generator_loss": made, "student_loss": learned}
    return Merged(best, diagnostics if validation is None else diagnostics | {"validation": score})


def generator_loss(
    ensemble: Float[Array, "n c"], student: Float[Array, "n c"], wanted: Int[Array, " n"], adversarial: float
) -> Float[Array, ""]:
    """Average over examples the cross-entropy with the classes that they are made for, minus λ times a divergence.

    The divergence is the student's from the ensemble, in nats. It counts where their classes differ: for examples near
    the student's wrong decisions.

    Args:
        ensemble: [n, C] outputs of the ensemble.
        student: [n, C] outputs of the student.
        wanted: [n] classes.
        adversarial: the factor λ.
    """
    named = optax.softmax_cross_entropy_with_integer_labels(ensemble, wanted)
    differ = jnp.argmax(student, -1) != jnp.argmax(ensemble, -1)
    return jnp.mean(named) - adversarial * jnp.mean(differ * divergence(student, ensemble))


def divergence(outputs: Float[Array, "n c"], target: Float[Array, "n c"]) -> Float[Array, " n"]:
    """Compute the KL divergence [n] from the target's probabilities to the outputs' of each example; in nats."""
    p = jax.nn.softmax(target)
    return jnp.sum(p * (jax.nn.log_softmax(target) - jax.nn.log_softmax(outputs)), axis=-1)

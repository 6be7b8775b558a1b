"""Linear heads in closed form on features that all clients share: least squares whose statistics add up exactly.

At a model that every client was sent (the common start, AFL, arXiv 2405.16240; or a merged model, in one more exchange)
a client measures S = ΦᵀΦ and B = ΦᵀY for the activations Φ that enter a dense layer. The head of all clients' data is
W = (ΣS + λ tr(ΣS)/D · I)⁻¹ ΣB, whatever the split: no client is ever far from the others, since nothing is trained.
CCVR (arXiv 2106.05001) recalibrates from Gaussians of each class; here the moments are exact.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._doors import require_targets
from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import scaled, widened
from ..curvature import Capture, Moments, capture
from ..curvature._cotangents import counted
from ..curvature._leaves import leaves as leaves_of
from ..curvature.structures._moments import NoisyMoments, example_of, inputs_like
from ..curvature.structures._signs import nearest_semidefinite
from ._head_place import Place, find_place, require_exact, require_room, widest_place
from ._measure import require_options
from ._rule import Kind, Merged, Payload, Rule, Takes, Update, require_start, weight_of

PyTree = Any
RIDGE = 1e-4  # λ
FAILURE = 0.05  # AdaSSP's ρ: how often the noise may be larger than its ridge allows for
ADASSP = 0.25  # of its ridge, which is made for sums whose negative eigenvalues stay; here they are left out


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """A linear map of features that all clients apply before they clip; equal to itself alone.

    Attributes:
        matrix: [D, D]; features φ [D] become φ matrix.
    """

    matrix: Any


@dataclasses.dataclass(frozen=True)
class MeasureMoments:
    """Measures `Moments` of the chosen features at the model that was sent; the payload holds no parameters."""

    apply: Callable
    likelihood: Likelihood
    features: tuple[str, ...] | None  # None: see `head_place.widest_place`
    kind: str  # the rule's name: heads of the start and of a merged model are two statistics
    start: Callable[[PyTree], PyTree] | None = None  # what is made of the model that was sent
    batch_size: int = 256
    captured: Capture | None = None
    clip: float | None = None  # largest norm of an example's features, which are scaled down to it
    basis: Basis | None = None  # what is done to features before that; the head undoes it

    def model(self, sent: PyTree) -> PyTree:
        """Make the model that is measured of the one that was sent."""
        return require_start(sent) if self.start is None else self.start(require_start(sent))

    def __call__(self, update: Update, data: Examples, key: jax.Array) -> Payload:
        """One client's payload."""
        del key
        params = self.model(update.start)
        require_targets(self.likelihood, self.apply, params, data, empty=True)
        leaves, (place, described) = jax.tree.leaves(params), self.place(params, data.x)
        require_room(place, leaves)
        if self.clip is not None and len(place.outputs) > 1:
            raise ValueError(f"clip: got outputs of shape {place.outputs} for an example, expected one row")

        def of_example(x: Any, y: Any) -> list[jax.Array]:
            found = place.rows(leaves, x), regressed(self.likelihood, place.outputs, y)
            return [counted(self.likelihood, y, a) for a in found]

        def sums(batch: Batch) -> list[jax.Array]:
            rows, targets = jax.vmap(of_example)(batch.x, batch.y)
            rows = widened(rows)
            if self.basis is not None:
                rows = rows @ jnp.asarray(self.basis.matrix, rows.dtype)
            if self.clip is not None:
                rows = rows.astype(jnp.result_type(float))  # float64 where JAX has it, see `example_noise.exact`
                size = jnp.linalg.norm(rows.reshape(len(rows), -1), axis=-1)
                rows = rows * jnp.minimum(1, self.clip / jnp.maximum(size, self.clip * 1e-30))[:, None, None]
            rows, targets = (jnp.where(batch.mask[:, None, None], a, 0) for a in (rows, targets.astype(rows.dtype)))
            return [
                jnp.einsum("nti,ntj->ij", rows, rows),
                jnp.einsum("nti,ntc->ic", rows, targets),
                jnp.sum(targets, (0, 1)),
            ]

        second, cross, totals = mean_over_batches(sums, data, self.batch_size)
        moments = Moments(second, cross, totals, place.features, place.constant, example_of(data.x), described)
        return Payload(weight_of(data), None, moments, Kind(self.kind))

    def place(self, params: PyTree, x: Any) -> tuple[Place, Any]:
        """Find the head's place in a model and describe the model's leaves; x [n, ...] is looked at for its shape."""
        captured = capture(self.apply, params, x) if self.captured is None else self.captured
        described = leaves_of(params)
        if self.features is None:
            return widest_place(captured, described), described
        return find_place(captured, described, self.features), described


def analytic(
    apply: Callable,
    likelihood: Likelihood,
    *,
    features: Sequence[str] | None = None,
    ridge: float = RIDGE,
    **options: Any,
) -> Rule:
    """The analytic head on the common start's features: one exchange in which nothing is trained.

    Sums alone are sent, in place of parameters, and the result is that of the pooled data for every split. Outputs are
    least-squares fits of the targets (one-hot classes; 1 and −1 for binary ones), so that classes are as right as they
    can be, but probabilities are not calibrated: look at accuracies, not at losses.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what is fitted; its targets are.
        features: paths of the dense layer whose inputs are read, and maybe of the next one: ("fc1", "fc2:100") reads
            all inputs of fc1 and the first 100 of fc2. By default the first of the dense layers at the model's end, and
            as many units of it as leave room to write the head into the model. () is the last layer.
        ridge: λ, relative to the mean diagonal entry of ΣS.
        options: what else `MeasureMoments` takes: batch_size, captured, clip, basis, and `start`, a function that
            everybody applies to the model that was sent before it is measured, such as `models.designed`.

    Raises:
        TypeError: an unknown option.
        ValueError: `ridge` is not positive; when measuring, features for which the network has no room.

    Example:
        >>> import jax, jax.numpy as jnp, fedfisher_jax as ff
        >>> x, y = jnp.asarray([[1.0], [2.0], [3.0]]), jnp.asarray([[2.0], [4.0], [6.0]])
        >>> rule = ff.merge.analytic(lambda w, x: x @ w, ff.gaussian(), ridge=1e-6)
        >>> start = jnp.zeros((1, 1))
        >>> clients = [ff.examples(x[:1], y[:1]), ff.examples(x[1:], y[1:])]
        >>> sent = [rule.measure(ff.Update(None, start), one, jax.random.key(0)) for one in clients]
        >>> print(f"{ff.merge_payloads(rule, sent, start).params.item():.3f}")
        2.000
    """
    return _heads("analytic", apply, likelihood, features, ridge, options)


def recalibrate(
    apply: Callable, likelihood: Likelihood, *, features: Sequence[str] = (), ridge: float = RIDGE, **options: Any
) -> Rule:
    """The same head at a merged model, to be the second exchange of a rule made by `then`: "fedavg+recalibrate".

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what is fitted; its targets are.
        features: as in `analytic`; by default the last layer's inputs, where the head always has room.
        ridge: λ, relative to the mean diagonal entry of ΣS.
        options: what else `MeasureMoments` takes: batch_size, captured, clip, basis.

    Raises:
        TypeError: an unknown option.
        ValueError: `ridge` is not positive; when measuring, features for which the network has no room.
    """
    return _heads("recalibrate", apply, likelihood, tuple(features), ridge, options)


def regressed(likelihood: Likelihood, outputs: tuple[int, ...], target: Any) -> jax.Array:
    """Arrange one example's target as what outputs of this shape, [C] or [T, C], are fitted to: [positions, C]."""
    if likelihood.name == "categorical":
        rows = jax.nn.one_hot(target, outputs[-1])
    else:
        rows = jnp.asarray(target, jnp.result_type(float))  # integers without a sign would wrap
        rows = 2 * rows - 1 if likelihood.name == "bernoulli" else rows
    return jnp.reshape(rows, (-1, outputs[-1]))


def head_of(moments: Moments, ridge: float) -> tuple[np.ndarray, float]:
    """Solve for the head [D, C] in float64, from sums of moments, and tell what was added to the diagonal."""
    second, cross = (np.asarray(a, np.float64) for a in (moments.second, moments.cross))
    shift = ridge * max(np.trace(second), 0) / len(second)
    if isinstance(moments, NoisyMoments):
        shift += ADASSP * noise_ridge((second + second.T) / 2, float(np.asarray(moments.variances)[0]))
        second = nearest_semidefinite(second)
    if not shift > 0:
        raise ValueError("payloads: got features that are zero for every example, expected some that are not")
    return np.linalg.solve(second + shift * np.eye(len(second)), cross), shift


def noise_ridge(second: np.ndarray, variance: float) -> float:
    """Compute AdaSSP's λ for a Gram matrix with noise (Wang, arXiv 1803.02596, algorithm 2).

    λ = max(0, t √(D log(2D²/ρ)) − λ_min), where t is the noise's standard deviation off the diagonal and λ_min a lower
    bound of the noiseless matrix's least eigenvalue. It is made of what was released, so it costs no privacy.

    Args:
        second: [D, D], symmetric, the sum over examples of φφᵀ with Gaussian noise.
        variance: the variance of the noise on the diagonal; elsewhere it is half of that.
    """
    size, off = len(second), math.sqrt(variance / 2)
    largest = 2 * off * math.sqrt(size)  # eigenvalue of the noise: the semicircle's edge
    least = max(float(np.linalg.eigvalsh(second)[0]) - largest, 0.0)
    return max(0.0, off * math.sqrt(size * math.log(2 * size**2 / FAILURE)) - least)


def _heads(
    name: str,
    apply: Callable,
    likelihood: Likelihood,
    features: Sequence[str] | None,
    ridge: float,
    options: dict[str, Any],
) -> Rule:
    require_options(options, analytic, MeasureMoments)
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge: got {ridge}, expected a positive number")
    if isinstance(features, str):
        raise ValueError(f"features: got {features!r}, expected a sequence of paths, such as ({features!r},)")
    measure = MeasureMoments(apply, likelihood, None if features is None else tuple(features), name, **options)

    def lift(payload: Payload, start: PyTree) -> dict[str, Any]:
        return {"weight": payload.weight, "moments": scaled(payload.weight, payload.statistics)}

    def solve(summary: dict[str, Any], start: PyTree) -> Merged:
        moments = summary["moments"]
        model = measure.model(start)
        old, treedef = jax.tree.flatten(model)
        place, _ = measure.place(model, inputs_like(moments.example))
        if (place.features, place.constant) != (moments.features, moments.constant):
            raise ValueError(f"payloads: measured features {moments.features}, expected {place.features}")
        head, shift = head_of(moments, ridge)
        head = head if measure.basis is None else np.asarray(measure.basis.matrix, np.float64) @ head
        new, gap = require_exact(place, old, head)
        diagnostics = {"features": len(moments.second), "rounding": gap, "ridge": shift}
        return Merged(treedef.unflatten(new), {key: jnp.asarray(value) for key, value in diagnostics.items()})

    takes = Takes((Moments,), (name,))
    return Rule(name, measure, lift, solve, "add", jit=False, trains=False, takes=takes)

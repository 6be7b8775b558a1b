"""Where the error of a merged two-layer network comes from, measured run by run.

With ‖g‖² = Σ_i p_i (1/n_i) Σ_a g(x_ia)², the triangle inequality splits the loss of any merged model θ:

    √L(θ) ≤ √(Σ p_i L_i(θ_i)) + √(Σ p_i mean_a (f(x_ia; θ) − f(x_ia; θ_i))²)
            local optimisation       Laplace error: what merging adds

which is the decomposition of 2403.12329 (there with squares and a factor two). For the full Fisher the Laplace error is
only the curvature of f between θ_i and θ, because J_i(θ − θ_i) = 0 whenever the rows are independent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._trees import pick
from . import merges, rows, sample_space, two_layer
from .two_layer import ClientData, Params, Scaling


class Errors(NamedTuple):
    """What one global model costs; all scalars."""

    loss: Array  # L(θ): mean squared error over all examples
    laplace: Array  # mean squared difference of outputs between θ and θ_i on client i's own examples
    excess: Array  # L(θ) − Σ p_i L_i(θ_i); can be negative
    objective: Array  # Q(θ) of the full Fisher: the part of `laplace` that the linearised model already has
    test_loss: Array  # mean squared error on examples that no client saw; NaN if there are none
    to_locals: Array  # √(Σ p_i ‖θ − θ_i‖²)
    to_pooled: Array  # ‖θ − θ_pooled‖
    movement: Array  # max_r ‖w_r − w_r(0)‖
    flipped: Array  # share of (example, neuron) pairs whose activation differs between θ and θ_i; padding is none


class Run(NamedTuple):
    """Diagnostics of one run: common init, local training, every merge rule."""

    local_loss: Array  # Σ p_i L_i(θ_i), the local optimisation error
    pooled_loss: Array  # L of gradient descent on all examples together, for as many steps
    init_loss: Array  # L(θ_0)
    local_movement: Array  # max over clients and neurons of ‖w_r − w_r(0)‖
    mean_movement: Array  # mean over clients and neurons of ‖w_r − w_r(0)‖
    local_flipped: Array  # share of (example, neuron) pairs whose activation changed in local training
    ntk_min: Array  # smallest eigenvalue of the NTK J(θ_0) J(θ_0)ᵀ of all examples (not divided by their number)
    gram_min: Array  # smallest and largest eigenvalue of the stacked rows, i.e. of F̄ on their span
    gram_max: Array
    eigenvalues: Array  # [R] of F̄ on the span of the rows, ascending; first a zero for every row of weight 0
    target: Array  # [R], c per eigendirection: what the average leaves unexplained
    errors: dict[str, Errors]  # by rule, and "pooled"


def patterns(params: Params, data: ClientData) -> Array:
    """Activation patterns 1[w_rᵀx > 0], [M, n, m]; `params` of one network or of each client."""
    own = (None, 0)[params.a.ndim - 1]
    return jax.vmap(lambda w, x: x @ w > 0, in_axes=(own, 0))(params.w, data.x)


def flipped(params: Params, other: Params, data: ClientData) -> Array:
    """Share of (example, neuron) pairs whose activation differs between two networks; rows of weight 0 are none."""
    differ = jnp.mean(patterns(params, data) != patterns(other, data), axis=2, dtype=data.x.dtype)  # [M, n]
    return jnp.mean(differ, where=two_layer.real(data))


def movement(params: Params, start: Params) -> Float[Array, "*batch m"]:
    """‖w_r − w_r(0)‖ per neuron."""
    return jnp.linalg.norm(params.w - start.w, axis=-2)


def squared_norm(params: Params) -> Array:
    """‖θ‖², per leading axis if there is one."""
    return jnp.sum(params.w**2, axis=(-2, -1)) + jnp.sum(params.a**2, axis=-1)


def _minus(a: Params, b: Params) -> Params:
    return jax.tree.map(jnp.subtract, a, b)


def errors(
    params: Params,
    local: Params,
    pooled: Params,
    start: Params,
    objective: merges.FullObjective,
    data: ClientData,
    test: ClientData | None = None,
    scaling: Scaling = "ntk",
) -> Errors:
    """Diagnostics of one global model; `local` has a leading client axis, the other parameters none."""
    outputs, local_outputs = (two_layer.client_outputs(p, data, scaling) for p in (params, local))
    local_loss = jnp.sum(data.weights * (local_outputs - data.y) ** 2)
    value = jnp.sum(data.weights * (outputs - data.y) ** 2)
    to_local = _minus(params, local)
    return Errors(
        loss=value,
        laplace=jnp.sum(data.weights * (outputs - local_outputs) ** 2),
        excess=value - local_loss,
        objective=jnp.sum(rows.push(objective.rows, to_local) ** 2),
        test_loss=jnp.nan * value if test is None else two_layer.loss(params, test, scaling),
        to_locals=jnp.sqrt(jnp.sum(two_layer.client_weights(data) * squared_norm(to_local))),
        to_pooled=jnp.sqrt(squared_norm(_minus(params, pooled))),
        movement=movement(params, start).max(),
        flipped=flipped(params, local, data),
    )


def diagnose(
    start: Params,
    data: ClientData,
    steps: int | Array,
    step_size: float | Array,
    scaling: Scaling = "ntk",
    train_output: bool = False,
    test: ClientData | None = None,
    rules: tuple[merges.Rule, ...] = merges.RULES,
) -> Run:
    """Train every client from `start`, merges with every rule and measure.

    Pure and traceable: jit it for one width and map it over seeds. Rows of weight 0 change nothing, whatever they hold.

    Args:
        start: Common initial parameters, w [d, m] and a [m].
        data: M clients.
        steps: Gradient steps K of every client, and of the pooled model.
        step_size: η of `two_layer.train`.
        scaling: Output scale of the network.
        train_output: Train the output weights too.
        test: Examples that no client saw.
        rules: Which global models to make.
    """
    data = two_layer.hide_padding(data)
    local = two_layer.train(start, data, steps, step_size, scaling, train_output)
    pooled = two_layer.train(start, two_layer.pool(data), steps, step_size, scaling, train_output)
    pooled = pick(pooled, 0)
    objective = merges.full_objective(local, data, scaling, train_output)
    models = {rule: merges.merge(rule, objective, local, data) for rule in rules} | {"pooled": pooled}
    found = {k: errors(p, local, pooled, start, objective, data, test, scaling) for k, p in models.items()}
    moved = movement(local, start)
    even = data._replace(weights=two_layer.real(data).astype(data.weights.dtype))
    padding = jnp.sum(~two_layer.real(data))
    stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(data.x), *leaf.shape)), start)
    ntk = rows.gram(rows.jacobian_rows(stacked, even, scaling, train_output))
    return Run(
        local_loss=two_layer.loss(local, data, scaling),
        pooled_loss=found["pooled"].loss,
        init_loss=two_layer.loss(start, data, scaling),
        local_movement=moved.max(),
        mean_movement=jnp.mean(moved.mean(axis=-1), where=two_layer.real(data).any(axis=-1)),
        local_flipped=flipped(local, start, data),
        ntk_min=sample_space.smallest(jnp.linalg.eigvalsh(ntk), padding),
        gram_min=sample_space.smallest(objective.spectrum.values, padding),
        gram_max=objective.spectrum.values[-1],
        eigenvalues=objective.spectrum.values,
        target=objective.spectrum.target,
        errors=found,
    )


def descent_gap(objective: merges.FullObjective, step_size: float | Array, steps: int | Array) -> dict[str, Array]:
    """Gradient descent on the objective against its closed-form limit, per eigendirection.

    Returns:
        ``remaining`` [R], the share of each eigendirection still to go after `steps`; ``distance``, ‖θ_T − θ*‖; and
        ``objective``, Q(θ_T) − Q(θ*).
    """
    spec = objective.spectrum
    u, limit = sample_space.iterate(spec, step_size, steps), sample_space.minimiser(spec)
    return {
        "remaining": sample_space.remaining(spec, step_size, steps),
        "distance": sample_space.distance(spec, u - limit),
        "objective": sample_space.objective(spec, u) - sample_space.objective(spec, limit),
    }

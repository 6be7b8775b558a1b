"""The same diagnostics for any network `apply(params, x) -> outputs` with squared loss, by Jacobian products alone.

As for two-layer networks (`sample_space`), the full-Fisher model is θ̄ + Aᵀu with u solved in sample · output space
[R, R], R = M n C; no [P, P] and no [R, P] array is made. Each row of the Gram matrix is one vjp and M jvps. On
processors wrap convolutional networks in `fedfisher_jax.as_matrix_products`: their gradients inside loops
are slow otherwise.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from .._examples import examples
from .._likelihood import gaussian
from .._trees import pick
from ..curvature import capture, fisher
from ..solve import objective
from . import sample_space
from .two_layer import ClientData as ClientData
from .two_layer import hide_padding, pool, real, shares

Apply = Callable[[Any, Array], Array]  # (params, x [n, ...]) -> outputs [n, C]


class Errors(NamedTuple):
    """What one global model costs, as in `decomposition.Errors`; all scalars."""

    loss: Array  # L(θ) = Σ weights ‖f − y‖²
    laplace: Array
    excess: Array
    objective: Array
    to_locals: Array
    to_pooled: Array
    movement: Array  # ‖θ − θ_0‖ / ‖θ_0‖


class Run(NamedTuple):
    """Diagnostics of one run, as in `decomposition.Run`."""

    local_loss: Array
    init_loss: Array
    local_movement: Array  # largest ‖θ_i − θ_0‖ / ‖θ_0‖
    ntk_min: Array  # extreme eigenvalues of the weighted Jacobian rows at θ_0
    ntk_max: Array
    step_size: Array  # the step that was used
    eigenvalues: Array  # [R] of F̄ on the span of the rows at the local models; zeros for rows of weight 0
    errors: dict[str, Errors]


def norm(params: Any) -> Array:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)))


def minus(a: Any, b: Any) -> Any:
    """Difference, with broadcasting of leading axes."""
    return jax.tree.map(jnp.subtract, a, b)


def stack(params: Any, copies: int) -> Any:
    """The same parameters for every client."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (copies, *leaf.shape)), params)


def outputs(apply: Apply, local: Any, data: ClientData) -> Float[Array, "M n C"]:
    """Outputs of each client's own parameters (leading axis M) on its examples."""
    return jax.lax.map(lambda args: apply(*args), (local, data.x))


def push(apply: Apply, local: Any, data: ClientData, delta: Any) -> Float[Array, "M n C"]:
    """A δ: √weights J_i δ_i for δ with a leading client axis."""

    def client(args: tuple[Any, Array, Array, Any]) -> Array:
        params, x, weights, d = args
        return jnp.sqrt(weights)[:, None] * jax.jvp(lambda p: apply(p, x), (params,), (d,))[1]

    return jax.lax.map(client, (local, data.x, data.weights, delta))


def pull(apply: Apply, local: Any, data: ClientData, u: Float[Array, "M n C"]) -> Any:
    """Aᵀu: Σ_i J_iᵀ √weights u_i, accumulated client by client."""

    def client(total: Any, args: tuple[Any, Array, Array, Array]) -> tuple[Any, None]:
        params, x, weights, cotangent = args
        (g,) = jax.vjp(lambda p: apply(p, x), params)[1](jnp.sqrt(weights)[:, None] * cotangent)
        return jax.tree.map(jnp.add, total, g), None

    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), local)
    return jax.lax.scan(client, zero, (local, data.x, data.weights, u))[0]


def over_rows(apply: Apply, local: Any, data: ClientData, use: Callable[[Any], Any], chunk: int) -> Any:
    """`use` of every row of A as a parameter pytree, `chunk` rows of one client in memory at a time: [M, n C, ...]."""

    def client(args: tuple[Any, Array, Array]) -> Any:
        params, x, weights = args
        out, transpose = jax.vjp(lambda p: apply(p, x), params)
        basis = jnp.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape) * jnp.sqrt(weights)[:, None]
        return jax.lax.map(lambda e: use(transpose(e)[0]), basis, batch_size=min(chunk, out.size))

    return jax.lax.map(client, (local, data.x, data.weights))


def gram(apply: Apply, local: Any, data: ClientData, chunk: int = 8) -> Float[Array, "R R"]:
    """K = AAᵀ over R = M n C rows, in the order (client, example, output)."""
    clients = len(data.x)
    blocks = over_rows(apply, local, data, lambda row: push(apply, local, data, stack(row, clients)), chunk)
    rows = blocks.shape[0] * blocks.shape[1]
    return blocks.reshape(rows, rows)


def diagonal(apply: Apply, local: Any, data: ClientData, chunk: int = 8) -> Any:
    """Diagonals of p_i F_i with a leading client axis."""

    def client(args: tuple[Any, Array, Array]) -> Any:
        params, x, weights = args
        out, transpose = jax.vjp(lambda p: apply(p, x), params)
        basis = jnp.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape) * jnp.sqrt(weights)[:, None]

        def add(total: Any, e: Array) -> tuple[Any, None]:
            return jax.tree.map(lambda t, g: t + g**2, total, transpose(e)[0]), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), basis)[0]

    return jax.lax.map(client, (local, data.x, data.weights))


def kfac(apply: Apply, local: Any, data: ClientData, iterations: int = 1000) -> Any:
    """Merge by FedFisher with a Kronecker block per layer (2403.12329), undamped: the minimiser nearest the average θ̄.

    Conjugate gradients are plain: preconditioned ones move null spaces away from θ̄. Layers are found in `apply`
    (`curvature.capture`); parameters that are in none have the diagonal of their Fisher. In float64: undamped blocks
    are nearly singular. Examples of a client count alike, whatever their weights, but those of weight 0, which do not.
    """
    shape = jax.ShapeDtypeStruct((1, *data.x.shape[2:]), data.x.dtype)
    captured = capture(apply, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), local), shape)

    def client(args: tuple[Any, Array, Array, Array]) -> Any:
        params, x, y, weights = args
        return fisher(apply, gaussian(), params, examples(x, y, weights > 0), structure="kronecker", captured=captured)

    fishers = jax.lax.map(client, (local, data.x, data.y, data.weights))
    problem = objective(fishers, local, data.weights.sum(axis=1))
    step, _ = cg(problem.curvature.matvec, problem.pull, tol=1e-12, maxiter=iterations)
    return jax.tree.map(jnp.add, problem.anchor, step)


def train(apply: Apply, params: Any, data: ClientData, steps: int | Array, step_size: float | Array) -> Any:
    """Full-batch gradient descent on every client's ½ L_i from common parameters; result with a leading client axis."""

    def client(args: tuple[Array, Array, Array]) -> Any:
        x, y, weights = args
        q = shares(weights)[:, None]
        grad = jax.grad(lambda p: 0.5 * jnp.sum(q * (apply(p, x) - y) ** 2))
        body = lambda _, p: jax.tree.map(lambda v, g: v - step_size * g, p, grad(p))  # noqa: E731
        return jax.lax.fori_loop(0, steps, body, params)

    return jax.lax.map(client, tuple(hide_padding(data)))


def merge(apply: Apply, local: Any, data: ClientData, chunk: int = 8) -> tuple[dict[str, Any], sample_space.Spectrum]:
    """Global models ``full``, ``diagonal`` and ``average`` (2403.12329), and the spectrum of the full Fisher."""
    p = data.weights.sum(axis=1)
    average = jax.tree.map(lambda leaf: jnp.tensordot(p.astype(leaf.dtype), leaf, axes=1), local)
    target = push(apply, local, data, minus(local, average))
    spectrum = sample_space.spectrum(gram(apply, local, data, chunk), target.reshape(-1))
    update = pull(apply, local, data, sample_space.minimiser(spectrum).reshape(target.shape))
    diagonals = diagonal(apply, local, data, chunk)

    def weighted(f: Array, theta: Array, centre: Array) -> Array:
        total = f.sum(axis=0)
        return jnp.where(total > 0, jnp.sum(f * theta, axis=0) / jnp.where(total > 0, total, 1), centre)

    models = {
        "full": jax.tree.map(jnp.add, average, update),
        "diagonal": jax.tree.map(weighted, diagonals, local, average),
        "average": average,
    }
    return models, spectrum


def diagnose(
    apply: Apply,
    start: Any,
    data: ClientData,
    steps: int | Array,
    step_size: float | Array,
    chunk: int = 8,
    further: Mapping[str, Callable[[Apply, Any, ClientData], Any]] | None = None,
) -> Run:
    """Local training, merging and error decomposition of any network; pure and traceable.

    Rows of weight 0 change nothing, whatever they hold.

    Args:
        apply: (params, x [n, ...]) -> outputs [n, C]; examples must not mix.
        start: Common initial parameters.
        data: M clients with regression targets.
        steps: Gradient steps K of every client and of the pooled model.
        step_size: In units of 1/λ_max of the tangent kernel at `start` (the largest over clients), so that networks of
            different widths learn at the same rate; below 2 the linearised network is stable.
        chunk: Rows of the Jacobian held at a time, each as large as the parameters.
        further: Other merges of the clients' models by name, such as {"kfac": kfac}, whose errors are told, too.
    """
    data = hide_padding(data)
    clients, shape = len(data.x), data.y.shape
    p = data.weights.sum(axis=1)
    stacked = stack(start, clients)
    even = data._replace(weights=shares(data.weights))
    ntk = gram(apply, stacked, even, chunk)
    own = ntk.reshape(clients, len(ntk) // clients, clients, -1)
    largest = jax.vmap(lambda i: jnp.linalg.eigvalsh(own[i, :, i])[-1])(jnp.arange(clients)).max()
    rate = step_size / largest
    local = train(apply, start, data, steps, rate)
    merged = pool(data)
    pooled = pick(train(apply, start, merged, steps, rate), 0)
    models, spectrum = merge(apply, local, data, chunk)
    models |= {name: make(apply, local, data) for name, make in (further or {}).items()}
    local_outputs = outputs(apply, local, data)
    total = partial(jnp.einsum, "in,inc->", data.weights)
    local_loss = total((local_outputs - data.y) ** 2)

    def errors(model: Any) -> Errors:
        out = outputs(apply, stack(model, clients), data).reshape(shape)
        offset = minus(model, local)
        distances = jax.vmap(norm)(offset)
        return Errors(
            loss=total((out - data.y) ** 2),
            laplace=total((out - local_outputs) ** 2),
            excess=total((out - data.y) ** 2) - local_loss,
            objective=jnp.sum(push(apply, local, data, offset) ** 2),
            to_locals=jnp.sqrt(jnp.sum(p * distances**2)),
            to_pooled=norm(minus(model, pooled)),
            movement=norm(minus(model, start)) / norm(start),
        )

    values = jnp.linalg.eigvalsh(ntk)
    return Run(
        local_loss=local_loss,
        init_loss=total((outputs(apply, stacked, data) - data.y) ** 2),
        local_movement=jax.vmap(norm)(minus(local, start)).max() / norm(start),
        ntk_min=sample_space.smallest(values, jnp.sum(~real(data)) * shape[-1]),
        ntk_max=values[-1],
        step_size=rate,
        eigenvalues=spectrum.values,
        errors={name: errors(model) for name, model in (models | {"pooled": pooled}).items()},
    )

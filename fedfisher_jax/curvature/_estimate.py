"""Fisher information of a model on examples: four structures; exact, Monte-Carlo or empirical.

    F = (1/n) Σ_x J_xᵀ S_x S_xᵀ J_x,   S_x S_xᵀ = Fisher of the outputs       (arXiv 2403.12329, section 3)

The kinds differ only in which output cotangents are pulled back: the columns of S (exact), gradients at targets drawn
from the model (monte_carlo), or at the given targets (empirical). One pass over the data serves every structure but the
low-rank one, which iterates.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import widened
from ._capture import capture
from ._columns import heaviest
from ._cotangents import cotangents
from ._eigenpairs import Subspace, top_eigenpairs
from ._pull_back import Capture, Pulled, activations, pull_back
from .structures._diagonal import Diagonal
from .structures._full import Full
from .structures._kronecker import Kronecker
from .structures._protocol import Fisher

PyTree = Any
Kind = Literal["exact", "monte_carlo", "empirical"]
STRUCTURES = ("diagonal", "kronecker", "full", "low_rank")
MAX_FULL = 20_000  # parameters: 1.6 GB in float32


def fisher(
    apply: Callable,
    likelihood: Likelihood,
    params: PyTree,
    data: Examples,
    *,
    structure: str = "diagonal",
    **options: Any,
) -> Any:
    """One structure of Fisher information: see `fishers` for the arguments."""
    return fishers(apply, likelihood, params, data, structures=(structure,), **options)[structure]


def fishers(
    apply: Callable,
    likelihood: Likelihood,
    params: PyTree,
    data: Examples,
    *,
    structures: Sequence[str] = ("diagonal", "kronecker"),
    kind: str = "exact",
    key: jax.Array | None = None,
    samples: int = 1,
    batch_size: int = 32,
    skip: float = 0.0,
    captured: Capture | None = None,
    subspace: Subspace = Subspace(),
) -> dict[str, Fisher]:
    """Several structures in one pass over the data; pure, can be jitted and vmapped over clients.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: of one example.
        params: any pytree of arrays.
        data: the client's examples; the result is the mean over them.
        structures: of "diagonal", "kronecker", "full" (a dense [d, d] matrix: small models), "low_rank" (needs `key`;
            `top_eigenpairs` tells its residuals too).
        kind: "exact", "monte_carlo" (needs `key`), "empirical".
        key: for Monte-Carlo, where an example's draws depend on its place among the client's examples, not on batches;
            and for low rank.
        samples: Monte-Carlo draws per example.
        batch_size: examples at once: memory grows with it, not with the data.
        skip: share of Σ_x tr(S_x S_xᵀ), the Fisher of the outputs, that may be left out. The columns of S that carry
            least are not pulled back, which saves most of the work where a classifier is sure of itself. What is found
            is never above the exact F: the rest, (1/n) Σ J_xᵀ s sᵀ J_x over the columns s left out, is positive
            semi-definite. Activations are not concerned. Needs one number per example and column.
        captured: the model's layers, from `capture`; found here if not given. `capture(..., structured=False)` gives
            the plain per-example reference.
        subspace: rank and effort of "low_rank", and which parameters it covers.

    Raises:
        ValueError: unknown structure or kind, Monte-Carlo or low rank without key, `skip` outside of [0, 1) or not with
            "exact", or with "low_rank".
    """
    for name in structures:
        if name not in STRUCTURES:
            raise ValueError(f"structure: got {name!r}, expected one of {', '.join(STRUCTURES)}")
    rows_of = cotangents(likelihood, kind, key, samples)
    if not 0 <= skip < 1 or (skip and kind != "exact"):
        raise ValueError(
            f"skip: got {skip} with kind {kind!r}, expected a share from 0 to below 1, and 0 but for exact"
        )
    if skip and "low_rank" in structures:
        raise ValueError(f"skip: got {skip} with low_rank, which pulls back every column, expected 0")
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if "full" in structures and size > MAX_FULL:
        raise ValueError(
            f"structure: a full Fisher of {size} parameters is {size}² numbers; at most {MAX_FULL} allowed"
        )
    result: dict[str, Fisher] = {}
    if "low_rank" in structures:
        options = {"subspace": subspace, "kind": kind, "samples": samples, "batch_size": batch_size}
        result["low_rank"] = top_eigenpairs(apply, likelihood, params, data, key, **options).fisher
        if set(structures) == {"low_rank"}:
            return result
    if captured is None:
        captured = capture(apply, params, data.x)
    unstructured = capture(apply, params, data.x, structured=False) if "full" in structures else None
    leaves, treedef = jax.tree.flatten(params)

    def columns_of(outputs: Any, target: Any, position: Any) -> Any:
        rows = rows_of(outputs, target, position)
        return rows[columns.number[position]][None] if skip else rows

    def pulled(which: Capture, batch: Batch) -> Pulled:
        def one(x: Any, y: Any, mask: Any, position: Any) -> Pulled:
            result = pull_back(which, leaves, x, lambda outputs: columns_of(outputs, y, position))
            return widened(jax.tree.map(lambda leaf: jnp.where(mask, leaf, 0), result))

        return jax.vmap(one)(batch.x, batch.y, batch.mask, batch.position)

    def inputs(batch: Batch) -> list[jax.Array]:
        rows = jax.vmap(lambda x: activations(captured, leaves, x))(batch.x)
        rows = jax.tree.map(lambda a: jnp.where(batch.mask.reshape(-1, *[1] * (a.ndim - 1)), a, 0), rows)
        return [_gram(a) for a in widened(rows)]

    def sums(batch: Batch) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if "diagonal" in structures or "kronecker" in structures:
            parts = pulled(captured, batch)
            result["rest"] = [jnp.sum(g**2, axis=(0, 1)) for g in parts.leaves]
            pairs = list(zip(parts.activations, parts.gradients, strict=True))
            if "diagonal" in structures:
                result["squares"] = [_squares(a, g) for a, g in pairs]
            if "kronecker" in structures:
                if not skip:
                    result["inputs"] = [_gram(a) for a, _ in pairs]
                result["outputs"] = [jnp.einsum("nk...to,nk...tp->...op", g, g) / g.shape[-2] for _, g in pairs]
        if unstructured is not None:
            rows = [g.reshape(g.shape[0] * g.shape[1], -1) for g in pulled(unstructured, batch).leaves]
            jacobian = jnp.concatenate(rows, axis=-1)
            result["full"] = jacobian.T @ jacobian
        return result

    if skip:
        columns = heaviest(apply, likelihood, params, data, batch_size, skip)
        total = mean_over_batches(sums, columns.examples, batch_size, count=data.size)
        if "kronecker" in structures:
            total["inputs"] = mean_over_batches(inputs, data, batch_size)
    else:
        total = mean_over_batches(sums, data, batch_size)
    rest = dict(zip(captured.fallback_leaves, total.get("rest", ()), strict=False))
    if "diagonal" in structures:
        by_leaf = dict(rest)
        for layer, squares in zip(captured.layers, total["squares"], strict=True):
            by_leaf |= layer.from_matrix(squares)
        result["diagonal"] = Diagonal(jax.tree.unflatten(treedef, [by_leaf[i] for i in range(len(leaves))]))
    if "kronecker" in structures:
        factors = tuple(total["inputs"]), tuple(total["outputs"])
        result["kronecker"] = Kronecker(*factors, rest, captured.layers, treedef)
    if "full" in structures:
        result["full"] = Full(total["full"], tuple(jnp.shape(leaf) for leaf in leaves), treedef)
    return result


def _gram(a: jax.Array) -> jax.Array:
    """Σ_n Σ_t a aᵀ as [(groups,) inputs, inputs]: a [n, …, t, i]."""
    return jnp.einsum("n...ti,n...tj->...ij", a, a)


def _squares(a: jax.Array, g: jax.Array) -> jax.Array:
    """Σ_n Σ_k (Σ_t a_ti g_kto)² as [(groups,) inputs, outputs]: a [n, …, t, i], g [n, k, …, t, o]."""
    if a.shape[-2] == 1:  # one position: the square of the product is the product of the squares
        return jnp.einsum("n...i,n...o->...io", a[..., 0, :] ** 2, jnp.sum(g[..., 0, :] ** 2, axis=1))
    return jnp.sum(jnp.einsum("n...ti,nk...to->nk...io", a, g) ** 2, axis=(0, 1))

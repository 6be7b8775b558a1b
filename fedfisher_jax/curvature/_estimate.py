"""Fisher information of a model on examples: any structure; exact, Monte-Carlo or empirical.

    F = (1/n) Σ_x J_xᵀ S_x S_xᵀ J_x,   S_x S_xᵀ = Fisher of the outputs       (arXiv 2403.12329, section 3)

The kinds differ only in which output cotangents are pulled back: the columns of S (exact), gradients at targets drawn
from the model (monte_carlo), or at the given targets (empirical). One pass over the data serves every structure but the
low-rank one, which iterates.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood
from .._trees import widened
from ._capture import capture
from ._columns import Columns, heaviest
from ._cotangents import cotangents, counted_activations
from ._eigenpairs import Subspace
from ._pull_back import Capture, Pulled, activations, pull_back
from .structures._protocol import Fisher
from .structures._registry import by_name

PyTree = Any
Kind = Literal["exact", "monte_carlo", "empirical"]


def fisher(
    apply: Callable,
    likelihood: Likelihood,
    params: PyTree,
    data: Examples,
    *,
    structure: str = "diagonal",
    **options: Any,
) -> Any:
    """Estimate one structure of Fisher information, as a mean over examples.

    Args and Raises as in `fishers`, which gives several structures at once.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
        >>> f = ff.fisher(lambda w, x: x @ w, ff.gaussian(), jnp.zeros((2, 1)), ff.examples(x), structure="full")
        >>> f.matrix.tolist()  # xᵀx / 2
        [[0.5, 0.0], [0.0, 2.0]]
    """
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
    """Estimate several structures of Fisher information in one pass over the data.

    The function is pure, and can be jitted and vmapped over clients.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what the outputs mean.
        params: any pytree of arrays.
        data: the client's examples; the result is the mean over them.
        structures: "diagonal", "kronecker", "full" (a dense [d, d] matrix: small models), "gram" (activations alone),
            "low_rank" (needs `key`; `top_eigenpairs` tells its residuals too), or the name of a registered structure.
        kind: "exact", "monte_carlo" (needs `key`), "empirical".
        key: the random key of Monte-Carlo, where an example's draws depend on its place among the client's examples
            and not on batches, and of low rank.
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
        ValueError: unknown structure or kind, Monte-Carlo or low rank without key, a full Fisher of a large model, or
            `skip` outside of [0, 1), not with "exact", or with "low_rank".

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
        >>> found = ff.fishers(lambda w, x: x @ w, ff.gaussian(), jnp.zeros((2, 1)), ff.examples(x))
        >>> {name: f.diagonal().ravel().tolist() for name, f in found.items()}
        {'diagonal': [0.5, 2.0], 'kronecker': [0.5, 2.0]}
    """
    rows_of = cotangents(likelihood, kind, key, samples)
    chosen = _chosen(structures, params, kind, skip)
    iterated = {name: structure for name, structure in chosen.items() if hasattr(structure, "estimate")}
    summed = {name: structure for name, structure in chosen.items() if name not in iterated}
    options = {"subspace": subspace, "kind": kind, "samples": samples, "batch_size": batch_size}
    result: dict[str, Any] = {
        name: structure.estimate(apply, likelihood, params, data, key, **options)
        for name, structure in iterated.items()
    }
    if not summed:
        return result
    layers = capture(apply, params, data.x) if captured is None else captured
    readers = {"layers": layers}
    if any(structure.reads == "gradients" for structure in summed.values()):
        readers["gradients"] = capture(apply, params, data.x, structured=False)
    columns = heaviest(apply, likelihood, params, data, batch_size, skip) if skip else None
    means = _one_pass(summed, readers, params, data, batch_size, rows_of, columns, likelihood)
    for name, structure in summed.items():
        result[name] = structure.from_sums(*means[name], layers, params)
    return result


def _chosen(names: Sequence[str], params: PyTree, kind: str, skip: float) -> dict[str, Any]:
    """Look up the structures of these names, and refuse those that cannot be estimated so."""
    chosen = {name: by_name(name) for name in names}
    if not 0 <= skip < 1 or (skip and kind != "exact"):
        raise ValueError(
            f"skip: got {skip} with kind {kind!r}, expected a share from 0 to below 1, and 0 but for exact"
        )
    for name, structure in chosen.items():
        if skip and hasattr(structure, "estimate"):
            raise ValueError(f"skip: got {skip} with {name}, which pulls back every column, expected 0")
        structure.require(params)
    return chosen


def _one_pass(
    structures: Mapping[str, Any],
    readers: Mapping[str, Capture],
    params: PyTree,
    data: Examples,
    batch_size: int,
    rows_of: Callable,
    columns: Columns | None,
    likelihood: Likelihood,
) -> dict[str, tuple[PyTree, PyTree]]:
    """Average each structure's `sums` and `input_sums` in one pass, or two where columns are chosen."""
    leaves = jax.tree.leaves(params)
    of_layers = {name: structure for name, structure in structures.items() if structure.reads == "layers"}

    def pulled(reads: str, batch: Batch) -> Pulled:
        def one(x: Any, y: Any, mask: Any, position: Any) -> Pulled:
            def rows(outputs: Any) -> Any:
                found = rows_of(outputs, y, position)
                return found if columns is None else found[columns.number[position]][None]

            result = pull_back(readers[reads], leaves, x, rows)
            if likelihood.counts is not None:
                kept, positions = counted_activations(likelihood, y, result.activations)
                result = result._replace(activations=kept, positions=positions)
            return widened(jax.tree.map(lambda leaf: jnp.where(mask, leaf, 0), result))

        return jax.vmap(one)(batch.x, batch.y, batch.mask, batch.position)

    def input_sums(rows: list[jax.Array]) -> dict[str, Any]:
        return {name: structure.input_sums(rows) for name, structure in of_layers.items()}

    def inputs(batch: Batch) -> dict[str, Any]:
        def of_example(x: Any, y: Any) -> list[jax.Array]:
            return counted_activations(likelihood, y, activations(readers["layers"], leaves, x))[0]

        rows = jax.vmap(of_example)(batch.x, batch.y)
        rows = jax.tree.map(lambda a: jnp.where(batch.mask.reshape(-1, *[1] * (a.ndim - 1)), a, 0), rows)
        return input_sums(widened(rows))

    def sums(batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        parts = {reads: pulled(reads, batch) for reads in {structure.reads for structure in structures.values()}}
        found = {name: structure.sums(parts[structure.reads]) for name, structure in structures.items()}
        return found, input_sums(parts["layers"].activations) if of_layers and columns is None else {}

    if columns is None:
        means, by_input = mean_over_batches(sums, data, batch_size)
    else:
        means, _ = mean_over_batches(sums, columns.examples, batch_size, count=data.size)
        by_input = mean_over_batches(inputs, data, batch_size)
    return {name: (means[name], by_input.get(name, ())) for name in structures}

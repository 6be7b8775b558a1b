"""Fisher information of a model on examples: any structure; exact, Monte-Carlo or empirical.

    F = (1/n) Σ_x J_xᵀ S_x S_xᵀ J_x,   S_x S_xᵀ = Fisher of the outputs       (arXiv 2403.12329, section 3)

The kinds differ only in which output cotangents are pulled back: the columns of S (exact), gradients at targets drawn
from the model (monte_carlo), or at the given targets (empirical). One pass over the data serves every structure but the
low-rank one, which iterates.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .._compat import standard_promotion, vary, varying
from .._doors import require_examples, require_known, require_likelihood, require_params, require_targets
from .._examples import Batch, Examples, mean_over_batches, require_batch_size
from .._likelihood import Likelihood
from .._trees import pick, widened
from ._capture import capture
from ._columns import Columns, every, heaviest
from ._cotangents import cotangents, counted_activations
from ._eigenpairs import Subspace
from ._pull_back import Capture, Pulled, activations, pull_back
from .structures._protocol import Fisher
from .structures._registry import by_name

PyTree = Any
Kind = Literal["exact", "monte_carlo", "empirical"]
LARGEST_BATCH = 32  # examples at once, where nobody says
ROOM, COPIES = 2**26, 4  # bytes, and copies of the parameters, that may be pulled back at once
CACHE, FEWEST = 2**20, 4  # on a CPU: bytes near a core, and examples below which products are too short to be fast


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


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The options of `fisher` and `fishers`: how Fisher information is estimated.

    Attributes:
        kind: "exact", "monte_carlo" (needs a key), "empirical".
        samples: Monte-Carlo draws per example.
        batch_size: examples at once: memory grows with it, not with the data. By default it is the largest, at most 32,
            for which what is pulled back at once takes no more than 64 MiB and four times the parameters, and on a CPU
            no more than a core's cache of 1 MiB, or 4 examples. Where one example takes more than the former, an
            exact Fisher pulls back some of its columns at a time.
        skip: share of Σ_x tr(S_x S_xᵀ), the Fisher of the outputs, that may be left out. The columns of S that carry
            least are not pulled back, which saves most of the work where a classifier is sure of itself. What is found
            is never above the exact F: the rest, (1/n) Σ J_xᵀ s sᵀ J_x over the columns s left out, is positive
            semi-definite. Activations are not concerned. It needs one number per example and column.
        captured: the model's layers, from `capture`; found where they are needed if not given.
            `capture(..., structured=False)` gives the plain per-example reference.
        subspace: rank and effort of "low_rank", and which parameters it covers.
    """

    kind: str = "exact"
    samples: int = 1
    batch_size: int | None = None
    skip: float = 0.0
    captured: Capture | None = None
    subspace: Subspace = Subspace()


@standard_promotion
def fishers(
    apply: Callable,
    likelihood: Likelihood,
    params: PyTree,
    data: Examples,
    *,
    structures: Sequence[str] = ("diagonal", "kronecker"),
    key: jax.Array | None = None,
    **options: Any,
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
        key: the random key of Monte-Carlo, where an example's draws depend on its place among the client's examples
            and not on batches, and of low rank.
        options: those of `Estimate`: kind, samples, batch_size, skip, captured, subspace.

    Raises:
        TypeError: a likelihood, data or parameters that are none; an unknown option.
        ValueError: targets that do not fit the outputs, where they are read; unknown structure or kind, Monte-Carlo or
            low rank without key, a full Fisher of a large model, or `skip` outside of [0, 1), not with "exact", or with
            "low_rank".

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
        >>> found = ff.fishers(lambda w, x: x @ w, ff.gaussian(), jnp.zeros((2, 1)), ff.examples(x))
        >>> {name: f.diagonal().ravel().tolist() for name, f in found.items()}
        {'diagonal': [0.5, 2.0], 'kronecker': [0.5, 2.0]}
    """
    require_known(options, [field.name for field in dataclasses.fields(Estimate)])
    how = Estimate(**options)
    kind, samples, batch_size, skip = how.kind, how.samples, how.batch_size, how.skip
    require_likelihood(likelihood)
    require_examples(data)
    data = data._replace(size=jnp.asarray(data.size))
    require_params(params)
    rows_of = cotangents(likelihood, kind, key, samples)
    params = vary(params, varying((data, key)))  # under `shard_map` every device has gradients of its own
    if kind == "empirical":
        require_targets(likelihood, apply, params, data)
    chosen = _chosen(structures, params, kind, skip)
    iterated = {name: structure for name, structure in chosen.items() if hasattr(structure, "estimate")}
    summed = {name: structure for name, structure in chosen.items() if name not in iterated}
    size = LARGEST_BATCH if batch_size is None else batch_size
    require_batch_size(size)
    iterating = {"subspace": how.subspace, "kind": kind, "samples": samples, "batch_size": size}
    result: dict[str, Any] = {
        name: structure.estimate(apply, likelihood, params, data, key, **iterating)
        for name, structure in iterated.items()
    }
    if not summed:
        return result
    layers = capture(apply, params, data.x) if how.captured is None else how.captured
    readers = {"layers": layers}
    if any(structure.reads == "gradients" for structure in summed.values()):
        readers["gradients"] = capture(apply, params, data.x, structured=False)
    columns = heaviest(apply, likelihood, params, data, size, skip) if skip else None
    if batch_size is None:
        size, columns = fitting(readers, params, data, rows_of, columns, split=kind == "exact")
    means = _one_pass(summed, readers, params, data, size, rows_of, columns, likelihood)
    for name, structure in summed.items():
        result[name] = structure.from_sums(*means[name], layers, params)
    return result


def _chosen(names: Sequence[str], params: PyTree, kind: str, skip: float) -> dict[str, Any]:
    """Look up the structures of these names, and refuse those that cannot be estimated so."""
    if isinstance(names, str):
        raise TypeError(f"structures: got the text {names!r}, expected a sequence of names, such as ({names!r},)")
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


def fitting(
    readers: Mapping[str, Capture], params: PyTree, data: Examples, rows_of: Callable, columns: Any, split: bool
) -> tuple[int, Columns | None]:
    """Choose how many examples, or columns of examples, to pull back at once: as many as there is room for."""
    leaves = jax.tree.leaves(params)
    one = pick((data.x, data.y, data.indices), 0)
    pulled = [
        jax.eval_shape(lambda x, y, n, r=reader: pull_back(r, leaves, x, lambda out: rows_of(out, y, n)), *one)
        for reader in readers.values()
    ]
    fixed = sum(_bytes(part.activations) for part in pulled)
    moving = sum(_bytes((part.gradients, part.leaves)) for part in pulled)
    count = jax.tree.leaves([(part.gradients, part.leaves) for part in pulled])[0].shape[0]
    room = ROOM + COPIES * _bytes(leaves)
    if columns is None and (fixed + moving <= room or not split):
        return _batch(fixed + moving, room), None
    return _batch(fixed + moving // count, room), every(data, count) if columns is None else columns


def _batch(each: int, room: int) -> int:
    """Choose how many examples of so many bytes to take at once: on a CPU as many as stay in a core's cache."""
    most = min(max(room // max(each, 1), 1), LARGEST_BATCH)
    return min(most, max(CACHE // max(each, 1), FEWEST)) if jax.default_backend() == "cpu" else most


def _bytes(tree: PyTree) -> int:
    """Count the bytes of arrays, of which only shapes and types are known."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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
                found = found if columns is None else found[columns.number[position]][None]
                return jnp.where(mask, found, 0)  # gradients of padding are zero, then, without a look at them

            result = pull_back(readers[reads], leaves, x, rows)
            kept, positions = result.activations, None
            if likelihood.counts is not None:
                kept, positions = counted_activations(likelihood, y, kept, readers[reads].uses)
            kept, positions = jax.tree.map(lambda leaf: jnp.where(mask, leaf, 0), (kept, positions))
            return widened(result._replace(activations=kept, positions=positions))

        return jax.vmap(one)(batch.x, batch.y, batch.mask, batch.position)

    def input_sums(rows: list[Any]) -> dict[str, Any]:
        return {name: structure.input_sums(rows) for name, structure in of_layers.items()}

    def inputs(batch: Batch) -> dict[str, Any]:
        def of_example(x: Any, y: Any) -> list[Any]:
            here = readers["layers"]
            return counted_activations(likelihood, y, activations(here, leaves, x), here.uses)[0]

        return input_sums(widened(batch.zeroed(jax.vmap(of_example)(batch.x, batch.y))))

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

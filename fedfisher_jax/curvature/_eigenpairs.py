"""The top eigenpairs of Fisher information, found without ever forming it (arXiv 2601.13608).

H = (1/n) Σ_x J_xᵀ S_x S_xᵀ J_x acts on a block of vectors by its rows S_xᵀ J_x where these are few (`by_rows`), else
through one Jacobian-vector and one vector-Jacobian product of each vector. Randomised subspace iteration (arXiv
0909.4061, algorithm 4.4) finds the subspace, Rayleigh–Ritz the pairs.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import standard_promotion, vary, varying
from .._doors import require_examples, require_likelihood, require_params, require_targets
from .._examples import Batch, Examples, mean_over_batches, require_batch_size
from .._likelihood import Likelihood
from .._trees import from_numbered
from ..tracing._apart import require_apart
from ..tracing._convolution import for_loops
from ._cotangents import cotangents
from ._kept_rows import by_rows
from .structures._low_rank import LowRank, dot, joined, split

PyTree = Any
START = np.uint32(2**32 - 1)  # folded into the key: no example has this place, so no draw shares these numbers


@dataclasses.dataclass(frozen=True)
class Subspace:
    """Which eigenpairs are looked for, and how hard.

    Attributes:
        rank: eigenpairs kept, r.
        oversampling: further vectors that are iterated on and then dropped; r + oversampling is cut at the number of
            parameters.
        power_steps: further passes over the data; each makes the error smaller by the ratio of the first eigenvalue
            that was dropped to the one looked at.
        where: function from a parameter's path, as `jax.tree_util.keystr` writes it (`['head']['kernel']`), to whether
            H covers it, or the numbers of the leaves that it covers, as `Layer.leaves` has them; None covers all. Where
            it does not, H is zero.
    """

    rank: int = 10
    oversampling: int = 10
    power_steps: int = 1
    where: Callable[[str], bool] | tuple[int, ...] | None = None

    def covered(self, params: PyTree) -> list[int]:
        """List the numbers of the leaves that H covers.

        Raises:
            ValueError: a number that no leaf has.
            TypeError: neither a function nor a tuple.
        """
        if not (self.where is None or callable(self.where) or isinstance(self.where, tuple)):
            raise TypeError(
                f"where: got {type(self.where).__name__}, expected a function or a tuple of leaves' numbers"
            )
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
        if isinstance(self.where, tuple):
            if beyond := [n for n in self.where if not 0 <= n < len(paths)]:
                raise ValueError(f"where: got leaf {beyond[0]}, expected 0 to {len(paths) - 1}")
            return [n for n in range(len(paths)) if n in self.where]
        return [n for n, path in enumerate(paths) if self.where is None or self.where(path)]


class Eigenpairs(NamedTuple):
    """What was found: the low-rank Fisher, and ‖H u − λ u‖ of each of its pairs [r]."""

    fisher: LowRank
    residuals: jax.Array


@standard_promotion
def top_eigenpairs(
    apply: Callable,
    likelihood: Likelihood,
    params: PyTree,
    data: Examples,
    key: jax.Array | None,
    *,
    subspace: Subspace = Subspace(),
    kind: str = "exact",
    samples: int = 1,
    batch_size: int = 32,
) -> Eigenpairs:
    """Find the largest eigenvalues of the Fisher information and their vectors; pure, can be jitted and vmapped.

    It takes power_steps + 2 passes over the data, or one where the rows S_xᵀ J_x fit into 128 MiB, and memory for these
    and for a few times rank + oversampling copies of the parameters that it covers.

    Args:
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what the outputs mean.
        params: any pytree of floating-point arrays.
        data: the client's examples; H is the mean over them.
        key: the random key of the start and of Monte-Carlo draws.
        subspace: rank and effort.
        kind: "exact", "monte_carlo" or "empirical", as in `fishers`.
        samples: Monte-Carlo draws per example.
        batch_size: examples at once.

    Raises:
        ValueError: no key, an unknown kind, a rank above the number of parameters or another number out of range, no
            parameter that `where` names, targets that do not fit with "empirical", or examples that mix, as for
            `capture`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> x = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])  # for y = x w with noise of variance 1, H = xᵀx / 2
        >>> model = (lambda w, x: x @ w, ff.gaussian(), jnp.zeros((2, 1)))
        >>> subspace = ff.curvature.Subspace(rank=1)
        >>> found = ff.curvature.top_eigenpairs(*model, ff.examples(x), jax.random.key(0), subspace=subspace)
        >>> print(f"{found.fisher.values[0]:.3f}", bool(found.residuals[0] < 1e-5))
        2.000 True
    """
    require_likelihood(likelihood)
    require_examples(data)
    require_params(params)
    if key is None:
        raise ValueError("key: got None, expected a random key, since low_rank starts from random vectors")
    if kind == "empirical":
        require_targets(likelihood, apply, params, data)
    params = vary(params, varying((data, key)))
    rows_of = cotangents(likelihood, kind, key, samples)
    leaves, treedef = jax.tree.flatten(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    covered = subspace.covered(params)
    shapes = [jnp.shape(leaves[n]) for n in covered]
    size = _checked(subspace, paths, shapes)
    require_batch_size(batch_size)
    require_apart(apply, params, data.x)
    dtype = jnp.result_type(jnp.float32, *[leaves[n].dtype for n in covered])
    width = min(subspace.rank + subspace.oversampling, size)
    kept = by_rows(apply, params, data, rows_of, covered, width, batch_size)
    product = kept or _product(for_loops(apply), params, data, rows_of, covered, batch_size)
    drawn = jax.random.normal(jax.random.fold_in(key, START), (size, width), dtype)
    start = vary(drawn, varying(params))
    values, vectors, residuals = _rayleigh_ritz(product, start, subspace)
    parts = dict(zip(covered, split(vectors.T, shapes), strict=True))
    all_shapes = tuple(jnp.shape(leaf) for leaf in leaves)
    return Eigenpairs(LowRank(jnp.maximum(values, 0), parts, all_shapes, treedef), residuals)


def _rayleigh_ritz(product: Callable, start: jax.Array, subspace: Subspace) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Iterate on a block of vectors [d, k]: the largest eigenvalues [r], their vectors [d, r], and residuals [r]."""
    image = product(start)
    for _ in range(subspace.power_steps + 1):
        basis = jnp.linalg.qr(image)[0]
        image = product(basis)
    small = basis.T @ image
    values, turns = jnp.linalg.eigh((small + small.T) / 2)
    values, turns = values[::-1][: subspace.rank], turns[:, ::-1][:, : subspace.rank]
    vectors = basis @ turns
    return values, vectors, jnp.linalg.norm(image @ turns - vectors * values, axis=0)


def _product(
    apply: Callable, params: PyTree, data: Examples, rows_of: Callable, covered: Sequence[int], batch_size: int
) -> Callable[[jax.Array], jax.Array]:
    """Make the map that applies H to the columns of [d, k], over the leaves that are covered."""
    leaves, treedef = jax.tree.flatten(params)
    chosen = [leaves[n] for n in covered]
    shapes = [jnp.shape(leaf) for leaf in chosen]

    def weigh(output: Any, tangent: Any, target: Any, mask: Any, position: Any) -> jax.Array:
        rows = rows_of(output, target, position).astype(tangent.dtype)
        return jnp.where(mask, jnp.tensordot(dot(rows, tangent), rows, axes=1), 0)

    def on_batch(vectors: jax.Array, batch: Batch) -> jax.Array:
        x = batch.sound(batch.x)

        def outputs_of(values: list[jax.Array]) -> jax.Array:
            everything = dict(enumerate(leaves)) | dict(zip(covered, values, strict=True))
            return apply(from_numbered(treedef, everything), x)

        outputs, push = jax.linearize(outputs_of, chosen)
        pull = jax.linear_transpose(push, chosen)

        def one(vector: jax.Array) -> jax.Array:
            parts = split(vector[None], shapes)
            tangents = push([part[0].astype(leaf.dtype) for leaf, part in zip(chosen, parts, strict=True)])
            weighted = jax.vmap(weigh)(outputs, tangents, batch.y, batch.mask, batch.position)
            return joined([part.astype(vector.dtype)[None] for part in pull(weighted)[0]])[0]

        return jax.vmap(one, in_axes=1, out_axes=1)(vectors)

    return lambda vectors: mean_over_batches(lambda batch: on_batch(vectors, batch), data, batch_size)


def _checked(subspace: Subspace, paths: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> int:
    """Count the parameters that are covered, and refuse a subspace that does not fit them."""
    if not shapes:
        raise ValueError(f"where: expected it to hold for a parameter, but it does for none of {', '.join(paths)}")
    size = sum(math.prod(shape) for shape in shapes)
    if not 1 <= subspace.rank <= size:
        raise ValueError(f"rank: got {subspace.rank}, expected 1 to the {size} parameters that are covered")
    for name in ("oversampling", "power_steps"):
        if getattr(subspace, name) < 0:
            raise ValueError(f"{name}: got {getattr(subspace, name)}, expected at least 0")
    return size

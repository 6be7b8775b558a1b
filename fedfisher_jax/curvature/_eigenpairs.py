"""The top eigenpairs of Fisher information, found without ever forming it (arXiv 2601.13608).

H = (1/n) Σ_x J_xᵀ S_x S_xᵀ J_x acts on a block of vectors through one Jacobian-vector and one vector-Jacobian product
per batch. Randomised subspace iteration (arXiv 0909.4061, algorithm 4.4) finds the subspace, Rayleigh–Ritz the pairs.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._examples import Batch, Examples, mean_over_batches
from .._likelihood import Likelihood
from ..tracing._convolution import for_loops
from ._cotangents import cotangents
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
            H covers it; None covers all. Where it does not, H is zero.
    """

    rank: int = 10
    oversampling: int = 10
    power_steps: int = 1
    where: Callable[[str], bool] | None = None


class Eigenpairs(NamedTuple):
    """What was found: the low-rank Fisher, and ‖H u − λ u‖ of each of its pairs [r]."""

    fisher: LowRank
    residuals: jax.Array


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

    It takes power_steps + 2 passes over the data, and memory for a few times rank + oversampling copies of the
    parameters that it covers.

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
        ValueError: no key, an unknown kind, a rank above the number of parameters or another number out of range, or no
            parameter that `where` names.

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
    if key is None:
        raise ValueError("key: got None, expected a random key, since low_rank starts from random vectors")
    pulled = cotangents(likelihood, kind, key, samples)
    leaves, treedef = jax.tree.flatten(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    covered = [n for n, path in enumerate(paths) if subspace.where is None or subspace.where(path)]
    shapes = [jnp.shape(leaves[n]) for n in covered]
    size = _checked(subspace, paths, shapes)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *[leaves[n].dtype for n in covered])
    apply = for_loops(apply)

    def product(vectors: jax.Array) -> jax.Array:
        """H applied to the columns of [d, k]."""

        def on_batch(batch: Batch) -> jax.Array:
            mask = batch.mask.reshape(-1, *[1] * (batch.x.ndim - 1))
            x = jnp.where(mask, batch.x, batch.x[:1])  # padding may hold anything, even what is not finite

            def outputs_of(values: list[jax.Array]) -> jax.Array:
                everything = list(leaves)
                for n, value in zip(covered, values, strict=True):
                    everything[n] = value
                return apply(jax.tree.unflatten(treedef, everything), x)

            def weigh(output: Any, tangent: Any, target: Any, mask: Any, position: Any) -> jax.Array:
                rows = pulled(output, target, position).astype(tangent.dtype)
                return jnp.where(mask, jnp.tensordot(dot(rows, tangent), rows, axes=1), 0)

            outputs, push = jax.linearize(outputs_of, [leaves[n] for n in covered])
            pull = jax.linear_transpose(push, [leaves[n] for n in covered])

            def one(vector: jax.Array) -> jax.Array:
                parts = split(vector[None], shapes)
                tangents = push([part[0].astype(leaves[n].dtype) for n, part in zip(covered, parts, strict=True)])
                weighted = jax.vmap(weigh)(outputs, tangents, batch.y, batch.mask, batch.position)
                return joined([part.astype(dtype)[None] for part in pull(weighted)[0]])[0]

            return jax.vmap(one, in_axes=1, out_axes=1)(vectors)

        return mean_over_batches(on_batch, data, batch_size)

    width = min(subspace.rank + subspace.oversampling, size)
    image = product(jax.random.normal(jax.random.fold_in(key, START), (size, width), dtype))
    for _ in range(subspace.power_steps + 1):
        basis = jnp.linalg.qr(image)[0]
        image = product(basis)
    small = basis.T @ image
    values, turns = jnp.linalg.eigh((small + small.T) / 2)
    values, turns = values[::-1][: subspace.rank], turns[:, ::-1][:, : subspace.rank]
    vectors = basis @ turns
    residuals = jnp.linalg.norm(image @ turns - vectors * values, axis=0)
    parts = dict(zip(covered, split(vectors.T, shapes), strict=True))
    all_shapes = tuple(jnp.shape(leaf) for leaf in leaves)
    return Eigenpairs(LowRank(jnp.maximum(values, 0), parts, all_shapes, treedef), residuals)


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

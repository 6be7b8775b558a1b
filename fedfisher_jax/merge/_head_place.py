"""Where a linear head on a model's activations has room in the model itself, and how it is written there exactly.

The head φ → φW reads the inputs f of a dense layer, and maybe the first u units of h = σ(R f), the inputs of the next.
On the last layer's inputs it is that layer. Further down, it goes through the layers between by the identity
z = σ(z) − σ(−z), which ReLU, GELU and SiLU have: with V and U the head's parts for f and h, the first layer becomes
[V, −V, R], the next ones L = [I, −I, U] as [L, −L], then [I, −I], and the last one [I, −I] again.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import Tracer
from ..curvature import Capture
from ..curvature._leaves import Leaf
from ..curvature._pull_back import Site, activations
from ..curvature._reuse import dense
from ..tracing._jaxpr import evaluate

ROUNDING = 1e-6  # of Σ|φ||W|, or eight times the relative precision of the model's numbers
SCALES = (1.0, 1.0, 30.0, 1000.0)  # of random inputs: an activation that saturates has no identity of this kind


@dataclasses.dataclass(frozen=True)
class Place:
    """A head's place: layer `first`, the last one or before it, whose inputs it reads, and `units` of the next's."""

    captured: Capture
    first: int
    units: int

    @property
    def sites(self) -> tuple[Site, ...]:
        """The layers that the head is written to, first to last."""
        return self.captured.sites[self.first :]

    @property
    def constant(self) -> bool:
        """Whether the head has a bias: one more feature, which is constantly one."""
        return self.sites[-1].layer.bias is not None

    @property
    def features(self) -> tuple[tuple[int, int], ...]:
        """Pairs of a weight's leaf number and how many inputs of its layer the head reads."""
        read = (self.sites[0].layer.weight, _widths(self.sites[0])[0])
        return (read, (self.sites[1].layer.weight, self.units)) if self.units else (read,)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of the model's outputs for one example."""
        return self.captured.program.avals[self.captured.program.outputs[0]].shape[1:]

    def rows(self, leaves: Sequence[Any], x: Any) -> jax.Array:
        """Compute the features [positions, D] of one example x [...]."""
        found = activations(self.captured, leaves, x)
        parts = [dense(found[self.first])[:, : _widths(self.sites[0])[0]]]
        if self.units:
            parts.append(dense(found[self.first + 1])[:, : self.units])
        if self.constant:
            parts.append(jnp.ones((len(parts[0]), 1), parts[0].dtype))
        return jnp.concatenate(parts, axis=-1)

    def write(self, leaves: Sequence[Any], head: Any) -> list[Any]:
        """Write the head [D, C] into the model's leaves."""
        split = np.cumsum([units for _, units in self.features])
        parts = jnp.split(jnp.asarray(head), split)
        bias, result = parts.pop(), list(leaves)
        for site, matrix in zip(self.sites, self._matrices(leaves, parts, bias), strict=True):
            for leaf, value in site.layer.from_matrix(matrix).items():
                result[leaf] = value.astype(jnp.result_type(leaves[leaf]))
        return result

    def _matrices(self, leaves: Sequence[Any], parts: list[jax.Array], bias: jax.Array) -> list[jax.Array]:
        """Make the layers' matrices, a bias as last row where a layer has one."""
        last, eye = len(self.sites) - 1, jnp.eye(self.outputs[-1], dtype=parts[0].dtype)
        rows, found = parts[:1], []  # what the next layer's outputs are to be made of, one below the other
        for number, site in enumerate(self.sites):
            layer = site.layer
            inputs, width = _widths(site)
            wanted = _padded(jnp.concatenate(rows), 0, inputs)
            if number == last:
                found.append(wanted if layer.bias is None else jnp.concatenate([wanted, bias]))
                return found
            columns = jnp.concatenate([wanted, -wanted], axis=1)
            if layer.bias is not None:
                columns = _padded(columns, 0, inputs + 1)
            kept = layer.to_matrix(leaves)[:, : width - columns.shape[1]].astype(columns.dtype)
            if number:  # the earlier layer's kept units come after the 2C that carry the head
                first, spare = 2 * self.outputs[-1], jnp.zeros((2 * self.outputs[-1], kept.shape[1]), kept.dtype)
                kept = jnp.concatenate([spare, kept[: inputs - first], kept[inputs:]])
            found.append(jnp.concatenate([columns, kept], axis=1))
            rows = [eye, -eye, *(parts[1:] if number == 0 else ())]
        raise AssertionError("a head has a last layer")


def find_place(captured: Capture, leaves: Sequence[Leaf], features: Sequence[str]) -> Place:
    """Find a head's place.

    Args:
        captured: the model's layers.
        leaves: the model's parameters by their paths.
        features: paths of one dense layer, or of two that follow each other, whose inputs are read; a path may leave
            out its last part, such as "/kernel", and ":100" after it reads the first 100 inputs of the second layer
            alone. () is the last layer.

    Raises:
        ValueError: there is no such place, and why.
    """
    sites, said = captured.sites, ", ".join(features) or "the last layer"
    if not sites or not _is_dense(captured, sites[-1]):
        raise ValueError(
            f"apply: got a model whose last captured layer is not dense, expected one: {captured.fallback}"
        )
    asked = [_resolve(captured, leaves, text) for text in features] or [(len(sites) - 1, None)]
    first, limit = asked[0]
    if limit is not None or len(asked) > 2 or (len(asked) == 2 and asked[1][0] != first + 1):
        raise ValueError(
            f"features: got {said}, expected all inputs of a dense layer, and maybe some of the one that follows it"
        )
    units = 0
    if len(asked) == 2:
        units = _widths(sites[first + 1])[0] if asked[1][1] is None else asked[1][1]
    place = Place(captured, first, units)
    for number, site in enumerate(place.sites):
        path = leaves[site.layer.weight].path
        if not _is_dense(captured, site):
            raise ValueError(f"features: got {said}, expected dense layers from there on, but {path} is none")
        inputs, width = _widths(site)
        needed = 2 * place.outputs[-1] + (units if number == 0 else 0)
        if number + 1 < len(place.sites) and width < needed:
            raise ValueError(f"features: got {said}, for which {path} needs {needed} units, but it has {width}")
        if number == 1 and units > inputs:
            raise ValueError(f"features: got {units} inputs of {path}, expected at most {inputs}")
    return place


def widest_place(captured: Capture, leaves: Sequence[Leaf]) -> Place:
    """Find the place that reads the first of the dense layers at the end, and as many units as there is room for."""
    dense = [_is_dense(captured, site) for site in captured.sites]
    first = len(dense) - (dense[::-1] + [False]).index(False)
    if first + 1 >= len(dense):
        return find_place(captured, leaves, ())
    paths = [leaves[site.layer.weight].path for site in captured.sites]
    bare = find_place(captured, leaves, (paths[first],))
    room = _widths(captured.sites[first])[1] - 2 * bare.outputs[-1]
    return dataclasses.replace(bare, units=min(room, _widths(captured.sites[first + 1])[0]))


def require_exact(place: Place, old: Sequence[Any], head: Any) -> tuple[list[Any], float]:
    """Write a head, and refuse it where the model then computes anything but φW at random inputs.

    Returns:
        The model's new leaves, and the largest difference relative to Σ|φ||W|.

    Raises:
        ValueError: it does not compute φW.
    """
    program = place.captured.program
    leaves, inputs = program.inputs[: len(old)], program.inputs[len(old) :]
    cast = [jnp.asarray(leaf, program.avals[v].dtype) for leaf, v in zip(old, leaves, strict=True)]
    new, random = place.write(cast, head), np.random.default_rng(0)
    x = [_drawn(program.avals[variable], random) for variable in inputs]
    gap = float(_gap(place, cast, new, jnp.asarray(head), x))
    precisions = [8 * float(jnp.finfo(leaf.dtype).eps) for leaf in cast]
    if not gap <= max(ROUNDING, *precisions):
        raise ValueError(
            f"apply: got a network that cannot hold a head on these features (outputs differ by {gap:.1g}, relative): "
            "expected the last layer's outputs to be the model's, and for earlier features dense layers with nothing "
            "between them but an activation for which σ(z) − σ(−z) = z, such as ReLU; choose the last layer's inputs?"
        )
    return new, gap


def require_room(place: Place, leaves: Sequence[Any]) -> None:
    """Refuse a place, as `require_exact` does, before any work: for random parameters of these shapes and types."""
    if any(isinstance(value, Tracer) for value in place.captured.program.constants.values()):
        return  # a model that closes over traced values can be checked when it is merged
    random = np.random.default_rng(0)
    width = sum(units for _, units in place.features) + place.constant
    with jax.ensure_compile_time_eval():
        drawn = [random.normal(size=jnp.shape(leaf)) / max(np.prod(jnp.shape(leaf)[:-1]), 1) ** 0.5 for leaf in leaves]
        dtype = jnp.result_type(float)
        require_exact(place, drawn, jnp.asarray(random.normal(size=(width, place.outputs[-1])), dtype))


def _drawn(example: Any, random: np.random.Generator) -> jax.Array:
    """Draw random inputs [scales, ...] like an example [1, ...]; whole numbers are 0 or 1, and not all of a mask 0."""
    scales = np.asarray(SCALES).reshape(-1, *[1] * (len(example.shape) - 1))
    draws = scales * random.normal(size=(len(SCALES), *example.shape[1:]))
    if jnp.issubdtype(example.dtype, jnp.floating):
        return jnp.asarray(draws, example.dtype)
    draws.reshape(len(SCALES), -1)[:, 0] = 1
    return jnp.asarray(draws > 0, example.dtype)


@partial(jax.jit, static_argnums=0)
def _gap(place: Place, old: list[Any], new: list[Any], head: Any, x: list[Any]) -> jax.Array:
    def one(example: list[Any]) -> jax.Array:
        rows = place.rows(old, example).astype(head.dtype)
        outputs = evaluate(place.captured.program, [*new, *[leaf[None] for leaf in example]])[0].reshape(
            -1, place.outputs[-1]
        )
        size = jnp.abs(rows) @ jnp.abs(head)
        return jnp.max(jnp.abs(outputs - rows @ head) / (size + jnp.finfo(size.dtype).tiny))

    return jnp.max(jax.lax.map(one, x))


def _resolve(captured: Capture, leaves: Sequence[Leaf], text: str) -> tuple[int, int | None]:
    """Find the layer that a text such as "fc2:100" names, and how many inputs of it."""
    name, colon, number = text.rpartition(":")
    limit = int(number) if colon and number.isdecimal() else None
    name = text if limit is None else name
    paths = [leaves[site.layer.weight].path for site in captured.sites]
    matches = [n for n, path in enumerate(paths) if name in (path, path.rpartition("/")[0])]
    if len(matches) != 1 or limit == 0 or not _is_dense(captured, captured.sites[matches[0]]):
        dense = [path for path, site in zip(paths, captured.sites, strict=True) if _is_dense(captured, site)]
        raise ValueError(f"features: got {text!r}, expected dense layers among {', '.join(dense)}")
    return matches[0], limit


def _is_dense(captured: Capture, site: Site) -> bool:
    alone = site.layer.groups == 1 and not site.more  # a head is written to a matrix that nothing else reads
    return alone and captured.program.equations[site.product].name == "dot_general"


def _widths(site: Site) -> tuple[int, int]:
    """Count a layer's inputs, bias excluded, and its outputs."""
    inputs, outputs = site.layer.matrix_shape
    return inputs - (site.layer.bias is not None), outputs


def _padded(matrix: jax.Array, axis: int, size: int) -> jax.Array:
    room = size - matrix.shape[axis]
    return jnp.pad(matrix, ((0, room), (0, 0)) if axis == 0 else ((0, 0), (0, room)))

"""Region files of silos whose Kronecker factors were cut to a few products a layer: see `solve._products`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import __version__
from .._trees import named_leaves
from ..curvature.structures._kronecker import Kronecker
from ..curvature.structures._protocol import named, with_arrays
from ..solve._products import Products
from . import _container as container
from ._decode import outline_of, require_sound
from ._region import FORMAT, PRODUCTS, Silo, summed_header

PyTree = Any
NUMBERS = ("shifts", "dropped", "kept")  # of each layer
MOST_RANK = 4096
POSITIVE = ("spare/", "terms/rest/")
TREES = ("anchor", "pull", "spare")


def packed(
    products: Products, template: Mapping[str, Any], rule: str, silos: Sequence[Silo], names: bool, lifted: str = ""
) -> bytes:
    """Write what was kept of silos' objective as the bytes of a file; arguments as those of `region.pack_sums`."""
    header = {"format": FORMAT, "holds": PRODUCTS, "library": __version__}
    header |= summed_header(template, rule, silos, names, lifted)
    header |= {name: [float(one) for one in getattr(products, name)] for name in NUMBERS}
    arrays = {f"{part}/{path}": leaf for part in TREES for path, leaf in named_leaves(getattr(products, part))}
    arrays |= {f"terms/{name}": array for name, array in named(products.terms, silos[0].header.leaves).items()}
    arrays["value"] = products.value
    return container.pack(header, {name: np.asarray(array) for name, array in arrays.items()})


def unpacked(raw: Mapping[str, Any], arrays: Mapping[str, np.ndarray], silos: Sequence[Silo], like: PyTree) -> Products:
    """Check the header and the arrays of such a file, and give what they hold.

    Args:
        raw: the file's JSON header.
        arrays: its arrays.
        silos: what the header says of its silos.
        like: the starting model.

    Raises:
        ValueError: which entry, and what is wrong with it.
    """
    header = silos[0].header
    outlined = outline_of(header, jax.tree.structure(like))
    if not isinstance(outlined, Kronecker):
        raise ValueError(f"structure: got {header.structure}, expected kronecker, which alone has products")
    numbers = [_numbers(name, raw[name], len(outlined.layers)) for name in NUMBERS]
    shapes = named(outlined, header.leaves)
    first = arrays.get(f"terms/{next(iter(shapes))}", np.zeros(()))
    rank = first.shape[0] if first.ndim else 0
    if not 1 <= rank <= MOST_RANK:
        raise ValueError(f"rank: got {rank}, expected 1 to {MOST_RANK} products of each layer")
    expected = {f"{part}/{path}": leaf.shape for part in TREES for path, leaf in named_leaves(like)}
    expected |= {f"terms/{name}": (rank, *outline.shape) for name, outline in shapes.items()} | {"value": ()}
    for name in sorted(set(expected) ^ set(arrays)):
        reason = "is missing" if name in expected else "does not belong to what the header announces"
        raise ValueError(f"{name[:80]}: {reason}")
    for name, shape in expected.items():
        if arrays[name].shape != shape or arrays[name].dtype not in (np.float32, np.float64):
            raise ValueError(f"{name}: got {arrays[name].dtype} {arrays[name].shape}, expected floats {shape}")
        try:
            require_sound("nonnegative" if name.startswith(POSITIVE) else "any", arrays[name])
            if name.startswith(("terms/inputs/", "terms/outputs/")):  # the first product alone is semi-definite
                require_sound("semidefinite", arrays[name][0])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    anchor, pull, spare = (_tree(like, arrays, part) for part in TREES)
    terms = with_arrays(outlined, [jnp.asarray(arrays[f"terms/{name}"]) for name in shapes])
    weight, value = float(sum(silo.header.examples for silo in silos)), jnp.asarray(arrays["value"])
    return Products(weight, anchor, pull, value, terms, spare, *numbers)


def _tree(like: PyTree, arrays: Mapping[str, np.ndarray], part: str) -> PyTree:
    held = [jnp.asarray(arrays[f"{part}/{path}"]) for path, _ in named_leaves(like)]
    return jax.tree.structure(like).unflatten(held)


def _numbers(name: str, values: Any, count: int) -> np.ndarray:
    """A number of at least zero for each layer."""
    sound = isinstance(values, list) and len(values) == count
    if not sound or not all(type(one) in (int, float) and np.isfinite(one) and one >= 0 for one in values):
        raise ValueError(f"{name}: expected {count} numbers of at least 0, one for each layer")
    return np.asarray(values, np.float64)

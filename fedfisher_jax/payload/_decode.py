"""A payload's arrays out of what a file stores: sizes before anything is decoded, then numbers."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..curvature.structures._signs import Sign, nearest_semidefinite, require_sign
from . import _codecs as codecs
from . import _structures as structures
from ._codecs import Raw, Singular
from ._container import Limits, PayloadError
from ._header import Header

EIGEN = 8  # an eigendecomposition for as many Cholesky factorisations
WORKING = 8 * 6, 8 * 4  # bytes a number that decoding and checking hold: of a matrix, of other encoded entries


def decode_entries(
    header: Header, arrays: Mapping[str, np.ndarray], limits: Limits, file: str, parity: bool, sound: bool
) -> dict[str, Any]:
    """Decode every entry's array, by its name; sizes are checked first, then numbers.

    Raises:
        PayloadError: an entry is missing, unknown, too large or not what it may be.
    """
    plan = header.plan
    held = header.leaves if structures.has_params(header.structure) else ()
    expected = {f"params/{leaf.path}": (leaf.shape, leaf.dtype) for leaf in held}
    shapes = structures.expected(outline_of(header), header.leaves)
    expected |= {name: (shape, header.fisher_dtype) for name, shape in shapes.items()}
    signs: dict[str, Sign] = {name: structures.sign(header.structure, name) for name in expected}
    if set(plan) - set(expected):
        raise PayloadError(f"{file}: encoded: no entry {sorted(set(plan) - set(expected))[0][:80]!r}")
    for name in sorted(set(expected) ^ set(arrays)):
        reason = "is missing" if name in expected else "does not belong to what the header announces"
        raise PayloadError(f"{file}: {name[:80]}: {reason}")
    for name, (shape, dtype) in expected.items():
        try:
            size, kind = codecs.joined_layout(plan.get(name, Raw()), shape, dtype)
        except ValueError as error:
            raise PayloadError(f"{file}: {name}: {error}") from error
        if arrays[name].shape != size or arrays[name].dtype != kind:
            given = f"{arrays[name].dtype} {arrays[name].shape}"
            raise PayloadError(f"{file}: {name}: got {given}, the header announces {kind} {size}")
        matrix = signs[name] == "semidefinite"
        needed = WORKING[not matrix] * math.prod(shape)
        if needed > limits.working_bytes and (name in plan or matrix):
            raise PayloadError(f"{file}: {name}: {needed} bytes to decode and check, the cap is {limits.working_bytes}")
    matrices = {name: shape for name, (shape, _) in expected.items() if signs[name] == "semidefinite"}
    cubes = sum(math.prod(s) * s[-1] * (EIGEN if isinstance(plan.get(n), Singular) else 1) for n, s in matrices.items())
    if cubes > limits.cubes * (1 + header.bits / 8 / 2**16):
        raise PayloadError(f"{file}: Σ n³ of the matrices that it announces is {cubes}, too much for its few bytes")
    total = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in expected.values())
    if total > limits.decoded_bytes:
        raise PayloadError(f"{file}: {total} bytes after decompression, the cap is {limits.decoded_bytes}")
    decoded = {}
    for name, (shape, dtype) in expected.items():
        codec = plan.get(name, Raw())
        try:
            with np.errstate(all="ignore"):  # overflow gives infinity, which is refused below
                value = codecs.decode(codec, codecs.split(codec, arrays[name], shape, dtype), shape, dtype)
            if isinstance(codec, Singular):
                _require_finite(value)
                value = value if parity else nearest_semidefinite(value)
            elif not sound:
                require_sound(signs[name], value)
            if sound:
                decoded[name] = value  # goes into compiled programs alone
                continue
            with np.errstate(all="ignore"):
                decoded[name] = jax.device_put(value)  # a narrower type, where jax has no float64; compiles nothing
            if decoded[name].dtype != value.dtype:
                _require_finite(np.asarray(decoded[name]))
        except (ValueError, np.linalg.LinAlgError) as error:
            raise PayloadError(f"{file}: {name}: {error}") from error
    return decoded


def _require_finite(array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise ValueError("expected finite numbers, got NaN or infinity")


def require_sound(sign: Sign, array: np.ndarray) -> None:
    """Refuse an array that is not finite, or whose entries are not what they may be, by a ValueError."""
    _require_finite(array)
    require_sign(sign, array)


def outline_of(header: Header, treedef: Any = None) -> Any:
    """Make the statistics that a header announces, with shapes in the place of arrays."""
    return structures.outline(header.structure, json.loads(header.static), header.leaves, treedef)

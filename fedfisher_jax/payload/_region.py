"""Region files: one file that stands for many silos, which a merge takes like theirs.

For a rule that adds, a region holds the exact sum of its silos' contributions; for one that stacks, their payloads,
encoded as they were. It names the silos' numbers, and their names only where that is asked for. A region is trusted no
more than a payload: who writes one answers for its silos, as a silo does for its examples.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import __version__
from .._trees import named_leaves
from ..curvature._leaves import Leaf
from ..curvature.structures._protocol import Statistic, named, sign_of
from ..merge._exact_sums import Sums
from ..merge._rule import Kind, Payload
from . import _container as container
from ._container import Limits
from ._decode import outline_of, require_sound
from ._header import About, Header, from_json, require_facts, require_flat

PyTree = Any
FORMAT = 1
SUMS, STACK = "sum of silos' contributions", "silos' payloads"  # what a file says that it holds
PRODUCTS = "few Kronecker products near the sum of silos' Fishers"  # see `_products_file`
MORE = {SUMS: {"payload"}, STACK: set(), PRODUCTS: {"payload", "shifts", "dropped", "kept"}}
LIFTED = "lifted"  # the rule with its options, where contributions depend on them
MOST_RULE = 1000
FIELDS = {"silo", "name", "examples", "bits", "compression", "privacy", "digest"}


class Silo(NamedTuple):
    """A silo of a merge."""

    header: Header  # of its payload, or what a region says of that
    digest: str  # SHA-256 of its payload's arrays, to tell one silo under two numbers; "" where nothing was read yet


def is_region(raw: Mapping[str, Any]) -> bool:
    """Tell whether a file's header is that of a region."""
    return raw.get("holds") in (SUMS, STACK, PRODUCTS)


def pack_sums(
    sums: Sums, template: Mapping[str, Any], rule: str, silos: Sequence[Silo], names: bool, lifted: str = ""
) -> bytes:
    """Write the exact sum of silos' contributions as the bytes of a file.

    Args:
        sums: the exact sum of the contributions.
        template: the JSON header of any of the silos' files.
        rule: what they are lifted by, by its plain name.
        silos: at least one, with digests.
        names: whether the file may hold the silos' names.
        lifted: the rule with its options, where these change contributions: others do not add up with them.
    """
    header = {"format": FORMAT, "holds": SUMS, "library": __version__}
    header |= summed_header(template, rule, silos, names, lifted)
    both = zip(("high", "low"), sums, strict=True)
    return container.pack(header, {f"{part}/{path}": leaf for part, tree in both for path, leaf in named_leaves(tree)})


def summed_header(
    template: Mapping[str, Any], rule: str, silos: Sequence[Silo], names: bool, lifted: str = ""
) -> dict[str, Any]:
    """Write what the header of a region whose silos are no longer apart says of them, see `pack_sums`."""
    total = sum(silo.header.examples for silo in silos)
    quiet = {"name": "", "compression": "none", "privacy": None, "codecs": [], "encoded": {}}
    said = [
        {
            "silo": silo.header.about.silo,
            "name": silo.header.about.name if names else "",
            "examples": silo.header.examples,
            "bits": silo.header.bits,
            "compression": silo.header.about.compression,
            "privacy": silo.header.about.privacy,
            "digest": silo.digest,
        }
        for silo in silos
    ]
    first = min(one["silo"] for one in said)
    payload = {**template, **quiet, "rule": rule, "examples": total, "silo": first}
    return {"payload": payload, "silos": said} | ({LIFTED: lifted} if lifted else {})


def pack_stack(held: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]], rule: str, names: bool) -> bytes:
    """Write payloads for a rule, each a JSON header and its arrays as they are stored, as the bytes of one file."""
    headers = [{**raw, "rule": rule, "name": raw["name"] if names else ""} for raw, _ in held]
    arrays = {f"{raw['silo']}/{name}": array for raw, stored in held for name, array in stored.items()}
    return container.pack({"format": FORMAT, "holds": STACK, "library": __version__, "silos": headers}, arrays)


def silos_of(raw: Mapping[str, Any], arrays: Mapping[str, np.ndarray], limits: Limits) -> list[Silo]:
    """Read the silos that a region's header says it stands for.

    Args:
        raw: the header.
        arrays: the arrays of the file.
        limits: caps on what is read.

    Raises:
        ValueError: what is missing, of another type, or contradicts the rest.
    """
    wanted = {"format", "holds", "library", "silos"} | MORE[raw["holds"]]
    more = set() if raw["holds"] == STACK else {LIFTED}
    if set(raw) - more != wanted or raw["format"] != FORMAT:
        raise ValueError(f"region: expected format {FORMAT} with {', '.join(sorted(wanted))}")
    lifted = raw.get(LIFTED, "")
    if not isinstance(lifted, str) or len(lifted) > MOST_RULE or not lifted.isprintable():
        raise ValueError(f"{LIFTED}: expected printable text of at most {MOST_RULE} characters")
    said = raw["silos"]
    if not isinstance(said, list) or not 1 <= len(said) <= limits.files:
        raise ValueError(f"silos: expected a list of 1 to {limits.files}")
    if raw["holds"] == STACK:
        found = [Silo(from_json(one, _size(one, own), limits), "") for one, own in members(raw, arrays)]
    else:
        template = from_json(_object(raw["payload"]), sum(array.nbytes for array in arrays.values()), limits)
        found = [_silo(one, template) for one in said]
        total = sum(silo.header.examples for silo in found)
        if total != template.examples:
            raise ValueError(f"examples: got {template.examples}, and {total} of all silos together")
    if len({silo.header.about.silo for silo in found}) != len(found):
        raise ValueError("silos: a number is there twice, and a silo counts once")
    return found


def members(
    raw: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Take the payloads of a region that stacks apart: each one's JSON header and stored arrays.

    Raises:
        ValueError: an array is of none of them.
    """
    own: dict[str, dict[str, np.ndarray]] = {str(_object(one).get("silo")): {} for one in raw["silos"]}
    for name, array in arrays.items():
        silo, _, entry = name.partition("/")
        if silo not in own:
            raise ValueError(f"{name[:80]}: belongs to no silo of the file")
        own[silo][entry] = array
    for one in raw["silos"]:
        yield one, own[str(one.get("silo"))]


def payload_shape(header: Header, like: PyTree) -> Payload:
    """Tell shapes and types of the payload that a header is of; `like` is the starting model."""
    treedef, dtype = jax.tree.structure(like), header.fisher_dtype
    outlined = outline_of(header, treedef)
    statistics = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), outlined)
    params = None if getattr(outlined, "alone", False) else jax.tree.map(_shape, like)
    kind = None if outlined is None or header.about.kind is None else Kind(header.about.kind)
    return Payload(jax.ShapeDtypeStruct((), jnp.result_type(float)), params, statistics, kind)


def sums_of(arrays: Mapping[str, np.ndarray], shape: PyTree, header: Header, examples: int) -> Sums:
    """Check the arrays of a region that adds, and make its sum of them.

    Args:
        arrays: the arrays of the file.
        shape: shapes and types of a contribution, see `contribution_shape`.
        header: the header of a silo.
        examples: the number of examples of all silos together.

    Raises:
        ValueError: which entry, and what is wrong with it.
    """
    entries = named_leaves(shape)
    expected = {f"{part}/{path}": leaf.shape for part in ("high", "low") for path, leaf in entries}
    for name in sorted(set(expected) ^ set(arrays)):
        reason = "is missing" if name in expected else "does not belong to what the header announces"
        raise ValueError(f"{name[:80]}: {reason}")
    for name, size in expected.items():
        array = arrays[name]
        if array.dtype != np.float64 or array.shape != size:
            raise ValueError(f"{name}: got {array.dtype} {array.shape}, expected float64 {size}")
        require_sound("any", array)
    treedef = jax.tree.structure(shape)
    high, low = ([arrays[f"{part}/{path}"] for path, _ in entries] for part in ("high", "low"))
    for (path, _), one, rest in zip(entries, high, low, strict=True):
        if not np.array_equal(one + rest, one):
            raise ValueError(f"low/{path}: expected less than half a unit in the last place of high/{path}")
    sums = Sums(treedef.unflatten(high), treedef.unflatten(low))
    _require_signs(sums.high, header.leaves)
    if isinstance(sums.high, Mapping) and "weight" in sums.high and float(sums.high["weight"]) != examples:
        raise ValueError(
            f"high/weight: got {float(sums.high['weight'])}, and {examples} examples of all silos together"
        )
    return sums


def _require_signs(summed: PyTree, leaves: Sequence[Leaf]) -> None:
    """Refuse a sum of Fishers that is none itself."""
    for node in jax.tree.leaves(summed, is_leaf=lambda node: isinstance(node, Statistic)):
        if isinstance(node, Statistic):
            for name, array in named(node, leaves).items():
                try:
                    require_sound(sign_of(type(node), name), np.asarray(array))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error


def _silo(said: Any, template: Header) -> Silo:
    """One silo's entry in a region that adds."""
    one = _object(said)
    if set(one) != FIELDS:
        raise ValueError(f"silos: expected {', '.join(sorted(FIELDS))} of each")
    require_facts(one)
    require_flat(one["privacy"])
    if type(one["bits"]) is not int or not 0 < one["bits"] < 2**53:
        raise ValueError(f"bits: expected a positive whole number, got {str(one['bits'])[:40]}")
    digest = one["digest"]
    if not (isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
        raise ValueError(f"digest: expected a SHA-256 in hexadecimal, got {str(digest)[:80]!r}")
    own = {field.name: one[field.name] for field in dataclasses.fields(About) if field.name in one}
    about = dataclasses.replace(template.about, **own)
    return Silo(template._replace(about=about, examples=one["examples"], bits=one["bits"]), digest)


def _size(raw: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of a payload within a region."""
    return len(json.dumps(raw)) + sum(array.nbytes for array in arrays.values())


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"silos: expected objects, got {str(value)[:40]!r}")
    return value


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))

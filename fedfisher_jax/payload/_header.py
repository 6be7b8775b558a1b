"""The header of a payload file: what it says of itself, checked before anything else is looked at."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from . import _codecs_json as codecs_json
from . import _structures as structures
from ._codecs import Codec
from ._container import Limits, PayloadError
from ._tree import Leaf, fingerprint, leaves

PyTree = Any
FORMAT = 1
OPTIONAL = ("structure", "kind")  # texts that may be null
TEXTS = ("library", "rule", "structure", "kind", "likelihood", "name", "start", "compression")
MOST_TEXT = 1000  # characters of a text
MOST_FACTS = 64  # of `privacy`
DTYPES = ("float64", "float32", "float16", "bfloat16")
Plan = Mapping[str, Codec]  # entry → codec; entries that are not in it stay raw


@dataclasses.dataclass(frozen=True)
class About:
    """What a file says of itself beside its arrays; servers compare it."""

    rule: str  # the rule it was measured for
    likelihood: str
    start: str  # fingerprint of the starting model, see `tree.fingerprint`
    kind: str | None = None  # of the Fisher information: exact, monte_carlo, empirical
    silo: int = 0  # the silo's number in the federation
    name: str = ""  # what people call it
    compression: str = "none"
    privacy: Mapping[str, Any] | None = None  # of `privacy.noise`: epsilon, delta and what they hold for


class Header(NamedTuple):
    """A file's checked header."""

    about: About
    examples: int
    structure: str | None
    leaves: tuple[Leaf, ...]
    static: str  # JSON: what the structure is beside its arrays, see `structures.outline`
    plan: dict[str, Codec]
    fisher_dtype: str
    library: str
    bits: int  # of the whole file


def to_json(payload: Any, arrays: Mapping[str, np.ndarray], about: About, plan: Plan) -> dict[str, Any]:
    """Write the header of a payload with these entries.

    Raises:
        ValueError: its Fisher has arrays of different types, or what readers would refuse, such as texts that are too
            long or not printable.
    """
    fisher = sorted({array.dtype.name for name, array in arrays.items() if name.startswith("fisher/")})
    if len(fisher) > 1:
        raise ValueError(f"payload.statistics: expected one type of numbers, got {', '.join(fisher)}")
    table = list(dict.fromkeys(plan.values()))
    header = {
        "format": FORMAT,
        "library": __version__,
        "structure": structures.name_of(payload.statistics),
        "examples": int(payload.weight),
        "params": [[leaf.path, list(leaf.shape), leaf.dtype] for leaf in structures.model_leaves(payload)],
        "static": {} if payload.statistics is None else payload.statistics.static(),
        "fisher_dtype": fisher[0] if fisher else None,
        "codecs": [codecs_json.to_json(codec) for codec in table],
        "encoded": {name: table.index(codec) for name, codec in plan.items()},
        **dataclasses.asdict(about),
    }
    from_json(header, 0, Limits(decoded_bytes=sys.maxsize))  # readers' caps on bytes are theirs to choose
    return header


def from_json(raw: dict[str, Any], size: int, limits: Limits) -> Header:
    """Read the header of a file of `size` bytes from its JSON.

    Raises:
        ValueError: what is missing, of another type, or contradicts the rest.
    """
    version = raw.get("format")
    if type(version) is not int or version < 1:
        raise ValueError(f"format: expected a version number, got {str(version)[:40]!r}")
    if version > FORMAT:
        raise ValueError(f"format: version {str(version)[:40]}; this library reads up to {FORMAT}: update it")
    wanted = {"format", "examples", "params", "static", "fisher_dtype", "codecs", "encoded", "silo", "privacy", *TEXTS}
    if set(raw) != wanted:
        raise ValueError(f"{sorted(map(repr, set(raw) ^ wanted))[0][:80]}: missing, or unknown to this version")
    require_facts(raw)
    if raw["structure"] not in (None, *structures.statistics()):
        raise ValueError(f"structure: got {raw['structure']!r}, known are {', '.join(structures.statistics())}")
    if raw["fisher_dtype"] not in (DTYPES if raw["structure"] else (None,)):
        raise ValueError(f"fisher_dtype: got {str(raw['fisher_dtype'])[:40]!r}")
    require_flat(raw["privacy"])
    described = _leaves(raw["params"], limits)
    for leaf in described:
        if not leaf.path.isprintable():
            raise ValueError(f"params: expected paths of printable characters, got {leaf.path[:80]!r}")
    structures.outline(raw["structure"], raw["static"], described)
    static = json.dumps(raw["static"], sort_keys=True)
    plan = _plan(raw["codecs"], raw["encoded"])
    fields = {field.name: raw[field.name] for field in dataclasses.fields(About)}
    about = About(**fields)
    return Header(
        about, raw["examples"], raw["structure"], described, static, plan, raw["fisher_dtype"], raw["library"], 8 * size
    )


def require_facts(raw: Mapping[str, Any]) -> None:
    """Refuse texts of a header that are none, too long, or would move a terminal's cursor, and numbers out of range.

    Args:
        raw: a header, or any part of it.

    Raises:
        ValueError: which one.
    """
    for key in (key for key in TEXTS if key in raw):
        value = raw[key]
        if not (isinstance(value, str) and len(value) <= MOST_TEXT or (value is None and key in OPTIONAL)):
            raise ValueError(f"{key}: expected a text, got {str(value)[:80]!r}")
        if not (value or "").isprintable():
            raise ValueError(f"{key}: expected printable characters, got {str(value)[:80]!r}")
    for key, least in (("examples", 1), ("silo", 0)):
        if type(raw[key]) is not int or not least <= raw[key] < 2**53:
            raise ValueError(f"{key}: expected a whole number of at least {least}, got {str(raw[key])[:80]}")


def owes_noise(privacy: Mapping[str, Any] | None) -> bool:
    """Tell whether the noise that was promised is divided among silos, so that their sum alone may be seen."""
    return privacy is not None and privacy.get("trust") == "distributed"


def require_flat(privacy: Any) -> None:
    """Refuse what is no object of names and single values, as `privacy.noise.Guarantee` is.

    Raises:
        ValueError: which entry.
    """
    if privacy is None:
        return
    if not isinstance(privacy, Mapping) or len(privacy) > MOST_FACTS:
        raise ValueError(f"privacy: expected null, or an object of at most {MOST_FACTS} values")
    for key, value in privacy.items():
        texts = all(isinstance(x, str) and len(x) <= MOST_TEXT and x.isprintable() for x in (key, value))
        number = type(value) is int and abs(value) < 2**53 or type(value) is float and math.isfinite(value)
        if not (
            texts or (isinstance(key, str) and key.isprintable() and (number or value is None or type(value) is bool))
        ):
            raise ValueError(f"privacy: {str(key)[:40]!r}: expected a number, a text, a truth value or null")


def _plan(table: Any, encoded: Any) -> dict[str, Codec]:
    if not isinstance(table, list) or not isinstance(encoded, dict):
        raise ValueError("codecs, encoded: expected a list and an object")
    known = []
    for number, value in enumerate(table):
        try:
            known.append(codecs_json.from_json(value))
        except ValueError as error:
            raise ValueError(f"codecs[{number}]: {error}") from error
    for name, number in encoded.items():
        if type(number) is not int or not 0 <= number < len(known):
            raise ValueError(f"encoded: {name[:80]}: expected a number of a codec, got {str(number)[:40]!r}")
    return {name: known[number] for name, number in encoded.items()}


def _leaves(value: Any, limits: Limits) -> tuple[Leaf, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= limits.entries:
        raise ValueError(f"params: expected a list of leaves, at least one, at most {limits.entries}")
    found = []
    for entry in value:
        good = isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and isinstance(entry[1], list)
        if (
            not good
            or not all(type(n) is int and 0 <= n < structures.MAX_SIZE for n in entry[1])
            or entry[2] not in DTYPES
        ):
            raise ValueError(f"params: expected [path, shape, type] with types {', '.join(DTYPES)}, got {entry!s:.80}")
        found.append(Leaf(entry[0], tuple(entry[1]), entry[2]))
        many = len(entry[1]) > structures.MAX_AXES
        if many or found[-1].size * np.dtype(entry[2]).itemsize > limits.decoded_bytes:
            raise ValueError(f"params: {entry[0][:80]!r} has shape {str(entry[1])[:80]}, which is beyond the cap")
    if len({leaf.path for leaf in found}) != len(found):
        raise ValueError("params: a path is there twice")
    return tuple(found)


def require_start(header: Header, like: PyTree, start: str | None = None) -> None:
    """Refuse a file that was not made from this starting model, whose fingerprint is `start` or that of `like`.

    Raises:
        ValueError: the leaf that differs, or the fingerprint.
    """
    ours = leaves(like)
    for mine, theirs in zip(ours, header.leaves, strict=False):
        if mine != theirs:
            raise ValueError(f"params: got {theirs.path[:80]!r} {theirs.shape} {theirs.dtype}, the start has {mine}")
    if len(ours) != len(header.leaves):
        raise ValueError(f"params: got {len(header.leaves)} leaves, the starting model has {len(ours)}")
    if header.about.start != (start or fingerprint(like)):
        raise ValueError(f"start: made from another starting model, {header.about.start[:12]}…")


def require_same(header: Header, first: Header, file: str, other: str) -> None:
    """Refuse a file that does not belong to the merge of another one.

    Raises:
        PayloadError: what differs.
    """
    for entry in ("start", "rule", "likelihood", "kind"):
        ours, theirs = getattr(header.about, entry), getattr(first.about, entry)
        if ours != theirs:
            raise PayloadError(f"{file}: {entry}: {ours!r}, but {theirs!r} in {other}")
    for entry in ("structure", "leaves", "static", "fisher_dtype"):
        if getattr(header, entry) != getattr(first, entry):
            raise PayloadError(f"{file}: {entry}: not that of {other}")

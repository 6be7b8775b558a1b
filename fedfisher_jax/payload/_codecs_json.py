"""Codecs as the JSON objects of a file's header."""

import dataclasses
from typing import Any

from ._codecs import Cholesky, Codec, Eigen, Raw, Root, Singular, Uniform

MOST = {"bits": 30, "rank": 1 << 20}
_NAMES = {"raw": Raw, "uniform": Uniform, "root": Root, "cholesky": Cholesky, "eigen": Eigen, "singular": Singular}


def to_json(codec: Codec) -> dict[str, Any]:
    """Write the codec as a JSON object."""
    names = {record: name for name, record in _NAMES.items()}
    inner = {field.name: getattr(codec, field.name) for field in dataclasses.fields(codec)}
    plain = {name: to_json(value) if type(value) in names else value for name, value in inner.items()}
    return {"codec": names[type(codec)]} | plain


def from_json(value: Any, depth: int = 3) -> Codec:
    """Read a codec from what `to_json` wrote; the value comes from a file.

    Raises:
        ValueError: not a codec that this version knows.
    """
    if not isinstance(value, dict) or not isinstance(value.get("codec"), str) or value["codec"] not in _NAMES:
        raise ValueError(f"expected a codec, one of {', '.join(_NAMES)}, got {str(value)[:80]!r}")
    record = _NAMES[value["codec"]]
    wanted = {field.name: field.type for field in dataclasses.fields(record)}
    if set(value) != {"codec", *wanted}:
        raise ValueError(f"expected {value['codec']} with {', '.join(wanted) or 'nothing else'}, got {sorted(value)}")
    arguments: dict[str, Any] = {}
    for name, kind in wanted.items():
        given = value[name]
        if kind in (bool, int):
            most = MOST.get(name, True)
            if type(given) is not kind or not (given <= most and (kind is bool or given >= 1)):
                raise ValueError(f"{name}: expected {kind.__name__}, at most {most}, got {str(given)[:80]!r}")
            arguments[name] = given
        elif depth:
            arguments[name] = from_json(given, depth - 1)
        else:
            raise ValueError("codecs are nested too deeply")
    return record(**arguments)

"""Replies that a node should not send, each made from an honest payload file; SECRET is what no server may learn."""

import json
import os
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict  # pyright: ignore[reportMissingImports]

from fedfisher_jax.payload import Limits
from fedfisher_jax.payload import _container as container
from fedfisher_jax.silos import flower

SECRET = "/home/ward-7/patients.csv: row 12: 4711"


def carrying(data, stype=flower.STYPE):
    """A message's content with these bytes as its payload."""
    return RecordDict({"arrays": ArrayRecord({"payload": Array("uint8", (len(data),), stype, data)})})


def _resealed(change, data):
    """The file after `change(header, arrays)`, sealed again."""
    header, arrays = container.unpack(data, Limits(), "good")
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(header, arrays)
    return carrying(container.pack(header, arrays))


def _with(**fields):
    return partial(_resealed, lambda header, arrays: header.update(fields))


def _every(part, value):
    def change(header, arrays):
        for name in arrays:
            if name.startswith(part):
                arrays[name][...] = value

    return partial(_resealed, change)


def _outlined(entry, body, data):
    """A file with one array more, whose outline is `entry`, as no writer of safetensors would make it."""
    size = int.from_bytes(data[:8], "little")
    outline = {"__metadata__": json.loads(data[8 : 8 + size])["__metadata__"], "z": {"dtype": "F32", **entry}}
    text = json.dumps(outline).encode()
    text += b" " * (-len(text) % 8)
    return carrying(len(text).to_bytes(8, "little") + text + body)


def _bare(header, arrays):
    """No statistics, which another rule's payload would not have."""
    header.update(structure=None, static={}, fisher_dtype=None, kind=None)
    for name in [name for name in arrays if name.startswith("fisher/")]:
        del arrays[name]


def _nested():
    value = 1
    for _ in range(600):
        value = {"a": value}
    return value


def _fail(data):
    raise ValueError(SECRET)


def _crash(data):
    os._exit(7)


CRAFTED = {
    "a shape of 2^124": partial(_outlined, {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, b""),
    "65 axes": partial(_outlined, {"shape": [1] * 65, "data_offsets": [0, 4]}, bytes(4)),
    "a field nested 600 deep": _with(privacy=_nested()),
    "random bytes": lambda data: carrying(np.random.default_rng(0).bytes(1000)),
    "no bytes": lambda data: carrying(b""),
    "half a file": lambda data: carrying(data[: len(data) // 2]),
    "a flipped bit": lambda data: carrying(data[:-1] + bytes([data[-1] ^ 1])),
    "a header of 2^63 bytes": lambda data: carrying((2**63).to_bytes(8, "little") + data[8:]),
    "a header that is a list": lambda data: carrying((8).to_bytes(8, "little") + b"[1, 2]  "),
    "no statistics": partial(_resealed, _bare),
    "a negative Fisher": _every("fisher/", -1.0),
    "NaN": _every("params/", np.nan),
    "enormous parameters": _every("params/", 3e38),
    "another start": _with(start="0" * 64),
    "another rule": _with(rule="fedavg"),
    "another kind": _with(kind="empirical"),
    "no examples": _with(examples=0),
    "arrays of another type": lambda data: carrying(data, "numpy.ndarray"),
    "an array that is none": lambda data: RecordDict({"arrays": ConfigRecord({"payload": data})}),
    "an empty message": lambda data: RecordDict(),
    "an exception": _fail,
    "a crash": _crash,
}

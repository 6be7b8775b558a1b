"""Mutated payload files: each is refused with a reason, or it is the original.

    PYTHONPATH=tests python tests/payload/fuzz.py 20000

Files are mutated as bytes (the seal must find that) and, as a malicious writer would, in fields, shapes, codecs,
nesting and sizes before they are sealed again (then an accepted file must be a sound payload: of the announced shapes,
finite, semi-definite). Half are read with small caps, half with those that readers have by default.
"""

import collections
import copy
import json
import resource
import sys
import time

import jax
import numpy as np
import samples
import threadpoolctl

from fedfisher_jax import payload as files
from fedfisher_jax.curvature.structures._signs import require_sign
from fedfisher_jax.payload import _codecs as codecs
from fedfisher_jax.payload import _container as container
from fedfisher_jax.payload import _file as file
from fedfisher_jax.payload import _structures as structures
from fedfisher_jax.payload import plan
from fedfisher_jax.payload._codecs_json import from_json, to_json

LIMITS = files.Limits(file_bytes=1 << 20, decoded_bytes=1 << 22, working_bytes=1 << 22)
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    10**4000,
    1.5,
    1e308,
    "",
    "x" * 300,
    "/../..",
    "\0",
    "é\ud800",
    "\x1b[2J[/x]",
    [],
    [[]],
    [1] * 100,
    [2**39] * 30,
    [10**4000] * 30,
    list(range(2000)),
    {},
    {"a": 1},
)
STEPS = (  # to the matrix of the samples' first layer, 24 numbers: some lead there, some nowhere
    [["reshape", [6, 4]]],
    [["reshape", [1] * 70 + [24]], ["reshape", [6, 4]]],
    [["reshape", [10**4000] * 30]],
    [["reshape", [0, 2**62, 2**62]], ["reshape", [6, 4]]],
    [["reshape", [24]], ["transpose", [0]], ["reshape", [6, 4]]] * 200,
    [["transpose", list(range(71))]],
)
NUMBERS = (np.nan, np.inf, -np.inf, -1.0, 0.0, 1e38, -1e-30)


def originals():
    """Small files of every structure, raw and compressed."""
    found = []
    for structure in samples.STRUCTURES:
        sent, said = samples.payload(structure), samples.about(structure)
        found += [files.dumps(sent, said), files.dumps(sent, said, plan.fit(sent, said, 100.0))]
    for sent in samples.beside_factors():
        said = samples.about("kronecker")
        found += [files.dumps(sent, said), files.dumps(sent, said, plan.fit(sent, said, 100.0))]
    sent = samples.payload("kronecker")
    return [*found, files.dumps(sent, samples.about("kronecker"), plan.authors(sent))]


def as_bytes(data, draw):
    """The file with some bits, bytes or pieces changed."""
    data = bytearray(data)
    for _ in range(draw.integers(1, 4)):
        place = int(draw.integers(len(data)))
        match draw.integers(7):
            case 0:
                data[place] ^= 1 << int(draw.integers(8))
            case 1:
                data[place] = int(draw.integers(256))
            case 2:
                del data[place:]
            case 3:
                del data[place : place + int(draw.integers(1, 20))]
            case 4:
                data[place:place] = bytes(draw.integers(0, 256, int(draw.integers(1, 20)), np.uint8))
            case 5:
                other = int(draw.integers(len(data)))
                data[place : place + 8] = data[other : other + 8]
            case 6:
                data[:8] = int(draw.integers(2**62) >> int(draw.integers(62))).to_bytes(8, "little")
        data = data or bytearray(b"\0")
    return bytes(data)


def as_text(data, draw):
    """The safetensors header with a changed value, the rest as it was."""
    size = int.from_bytes(data[:8], "little")
    outline = json.loads(data[8 : 8 + size])
    _change(outline, draw)
    text = json.dumps(outline).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def sealed(data, draw):
    """Header or arrays changed and sealed again."""
    header, arrays = samples.opened(data)
    header.pop("sha256")
    header = copy.deepcopy(header)
    for _ in range(draw.integers(1, 3)):
        name = list(arrays)[draw.integers(len(arrays))]
        match draw.integers(6):
            case 0 | 1 | 2:
                _change(header, draw)
            case 3:
                array = arrays[name].reshape(-1)
                if array.size:
                    array[draw.integers(array.size)] = draw.choice(
                        NUMBERS if array.dtype != np.uint8 else (0, 255, 128)
                    )
            case 4:
                arrays[name] = arrays[name].reshape(-1)[: draw.integers(arrays[name].size + 1)]
            case 5:
                arrays[str(draw.integers(3))] = arrays.pop(name)
        if not arrays:
            break
    try:
        return container.pack(header, arrays)
    except (ValueError, TypeError, UnicodeError):  # cannot be written at all: 1e400, lone surrogates
        return data


def stepped(data, draw):
    """A layer whose way from its weight to its matrix is another one, sealed again; without layers, as `sealed`."""
    header, arrays = samples.opened(data)
    header.pop("sha256")
    if not (layers := header["static"].get("layers")):
        return sealed(data, draw)
    layers[draw.integers(len(layers))]["steps"] = STEPS[draw.integers(len(STEPS))]
    return container.pack(header, arrays)


def nested(data, draw):
    """A value somewhere in the header lies deep in lists or objects; as text, for Python's own writer would stop."""
    size = int.from_bytes(data[:8], "little")
    outline = json.loads(data[8 : 8 + size])
    header = json.loads(outline["__metadata__"]["fedfisher"])
    _change(header, draw, replace="deep")
    first, last = ('{"a":', "}") if draw.random() < 0.5 else ("[", "]")
    depth = int(2 ** draw.uniform(0, 13))
    deep = first * depth + draw.choice(("1", "{}", "[]", '"x"')) + last * depth
    outline["__metadata__"]["fedfisher"] = json.dumps(header).replace('"deep"', deep)
    text = json.dumps(outline).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def recoded(data, draw):
    """Entries encoded otherwise: by codecs of any rank and width, in each other, with parts of the size they say."""
    header, arrays = samples.opened(data)
    header.pop("sha256")
    header["codecs"] = [_codec(draw, 3) for _ in range(draw.integers(1, 4))]
    header["encoded"] = {name: int(draw.integers(len(header["codecs"]))) for name in arrays if draw.random() < 0.7}
    try:
        shapes = {name: np.shape(value) for name, value in file.entries(files.loads(data)[0]).items()}
        for name, number in header["encoded"].items():
            dtype = np.float32 if draw.random() < 0.9 else np.float64
            codec = from_json(header["codecs"][number])
            size, kind = codecs.joined_layout(codec, shapes[name], dtype)
            arrays[name] = (
                draw.integers(0, 256, size, np.uint8).astype(kind) if draw.random() < 0.8 else np.zeros(size, kind)
            )
    except ValueError:  # no such codec for this shape: as it is
        pass
    return container.pack(header, arrays)


def announcing(data, draw):
    """A few kilobytes that announce large matrices, all sizes right; a triangle of them takes more, so a small one."""
    header, _ = samples.opened(data)
    header.pop("sha256")
    rank, count = int(draw.integers(1, 3)), int(draw.integers(1, 4))
    codes = codecs.Uniform(1), codecs.Uniform(1, False)
    wide = (codecs.Singular(rank, codes[0]), codecs.Eigen(rank, *codes), codecs.Cholesky(codes[0]))[draw.integers(3)]
    n = int(2 ** draw.uniform(1, 10 if isinstance(wide, codecs.Cholesky) else 13))  # a triangle takes n² / 2 bits
    names = [f"w{number}" for number in range(count)]
    entries = {f"params/{name}": (codes[0], (n, 1)) for name in names}
    entries |= {f"fisher/inputs/{name}": (wide, (n, n)) for name in names}
    header |= {"structure": "gram", "fisher_dtype": "float32", "params": [[name, [n, 1], "float32"] for name in names]}
    header["static"] = {"layers": [{"weight": k, "bias": None, "groups": 1, "steps": []} for k in range(count)]}
    header["codecs"] = [to_json(codes[0]), to_json(wide)]
    header["encoded"] = {name: int(codec is wide) for name, (codec, _) in entries.items()}
    layouts = {name: codecs.joined_layout(codec, shape, np.float32) for name, (codec, shape) in entries.items()}
    return container.pack(header, {name: np.zeros(size, kind) for name, (size, kind) in layouts.items()})


def _codec(draw, depth):
    """A codec as JSON, perhaps one that is none."""
    name = ("raw", "uniform", "root", "cholesky", "eigen", "singular")[draw.integers(6 if depth else 2)]
    inner = lambda: _codec(draw, depth - 1)  # noqa: E731
    rank = int(draw.choice((0, 1, 2, 3, 50, 2**20, 2**20 + 1)))
    if name == "raw":
        return {"codec": name}
    if name == "uniform":
        width = int(draw.choice((0, 1, 7, 8, 15, 30, 31, 32, 64)))
        return {"codec": name, "bits": width, "signed": bool(draw.integers(2)), "stochastic": bool(draw.integers(2))}
    if name in ("root", "cholesky"):
        return {"codec": name, "inner": inner()}
    if name == "singular":
        return {"codec": name, "rank": rank, "inner": inner()}
    return {"codec": name, "rank": rank, "vectors": inner(), "values": inner(), "tail": bool(draw.integers(2))}


def _change(value, draw, replace=None):
    """Replace, drop or copy something somewhere in a JSON value; or put `replace` there."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    if not len(keys):
        return
    key = keys[draw.integers(len(keys))]
    if isinstance(value[key], dict | list) and value[key] and draw.random() < 0.8:
        return _change(value[key], draw, replace)
    if replace is not None:
        value[key] = replace
        return
    match draw.integers(4):
        case 0:
            del value[key]
        case 1:
            value[key] = copy.deepcopy(VALUES[draw.integers(len(VALUES))])
        case 2 if type(value[key]) is int:
            value[key] += int(draw.integers(-2, 3))
        case _:
            value[key] = copy.deepcopy(value[keys[draw.integers(len(keys))]])


def judge(data, original, layers, limits):
    """ "equal", "sound" (another payload, but a sound one) or the reason; anything else raises."""
    try:
        start = samples.START if original["known"] else None
        got, header = files.loads(data, start, layers=layers, limits=limits, file="f")
    except files.PayloadError as error:
        assert str(error).startswith("f: ") and str(error).isprintable() and len(str(error)) < 1000, error
        return str(error)
    if (
        all(
            np.asarray(a).tobytes() == np.asarray(b).tobytes() and a.shape == b.shape
            for a, b in zip(jax.tree.leaves(got), original["leaves"], strict=False)
        )
        and jax.tree.structure(got) == original["tree"]
    ):
        return "equal"
    for name, array in file.entries(got).items():
        assert np.isfinite(array).all(), name
        if name.startswith("fisher/"):
            require_sign(structures.sign(header.structure, name), array)
    assert header.examples >= 1
    return "sound"


WAYS = as_bytes, as_text, sealed, stepped, nested, recoded, announcing
SHARES = 0.15, 0.15, 0.3, 0.15, 0.1, 0.13, 0.02


@threadpoolctl.threadpool_limits.wrap(limits=1)  # on busy processors BLAS's threads spin for seconds
def run(count, seed=0):
    """Outcomes of `count` mutated files, the slowest one's seconds of this process, and how it grew, in MiB."""
    draw, outcomes, slowest = np.random.default_rng(seed), collections.Counter(), 0.0
    pool = []
    for number, data in enumerate(originals()):
        got, _ = files.loads(data, samples.START if number % 2 else None)
        pool.append(
            {"data": data, "leaves": jax.tree.leaves(got), "tree": jax.tree.structure(got), "known": number % 2}
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        original = pool[number % len(pool)]
        way = WAYS[draw.choice(len(WAYS), p=SHARES)]
        mutated = way(original["data"], draw)
        layers = samples.LAYERS if number // len(pool) % 2 and way is not announcing else None  # as a merge knows them
        known = original if way is not announcing else original | {"known": False}
        began = time.process_time()
        outcome = judge(mutated, known, layers, LIMITS if draw.random() < 0.5 else files.Limits())
        slowest = max(slowest, time.process_time() - began)
        assert way not in (as_bytes, as_text) or outcome != "sound", "a changed file was accepted"
        outcomes[(way.__name__, outcome if outcome in ("equal", "sound") else "refused")] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return outcomes, slowest, grown


def main():
    """The full test: prints what came of it."""
    count, began = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, time.perf_counter()
    outcomes, slowest, grown = run(count)
    seconds = time.perf_counter() - began
    print(f"{count} files in {seconds:.1f} s, the slowest {slowest:.3f} s, {grown:.0f} MiB more memory")
    for (way, outcome), number in sorted(outcomes.items()):
        print(f"{way:>10} {outcome:>8} {number}")


if __name__ == "__main__":
    main()

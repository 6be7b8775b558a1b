"""What readers refuse: damaged files, hostile ones that are sealed again, and what would take too much."""

import resource
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import safetensors.numpy
from samples import about, entry, payload, resealed

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.curvature import Kronecker
from fedfisher_jax.payload import Limits, PayloadError, Uniform, plan

KRONECKER = files.dumps(payload("kronecker"), about("kronecker"))


def set_(path, value):
    def change(header, arrays):
        place = header
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def steps(*values):
    return set_(["static", "layers", 0, "steps"], values)


def drop(name):
    return lambda header, arrays: arrays.pop(name)


def negative_direction(matrix):
    """Symmetric, positive diagonal, one negative eigenvalue."""
    values, vectors = np.linalg.eigh(matrix)
    values[0] = -values[-1] / 2
    return ((vectors * values) @ vectors.T).astype(matrix.dtype)


MALICE = {
    "NaN": (entry("params/scale", lambda a: a * np.nan), "params/scale: expected finite"),
    "infinity": (entry("fisher/inputs/fc/kernel", lambda a: a / 0.0), "fisher/inputs/fc/kernel: expected finite"),
    "negative": (entry("fisher/rest/scale", lambda a: -a), "fisher/rest/scale: expected no negative"),
    "indefinite": (entry("fisher/inputs/fc/kernel", negative_direction), "fisher/inputs/fc/kernel: .*semi-definite"),
    "asymmetric": (entry("fisher/outputs/conv/kernel", np.triu), "fisher/outputs/conv/kernel: .*symmetric"),
    "missing": (drop("fisher/outputs/fc/kernel"), "fisher/outputs/fc/kernel: is missing"),
    "extra": (lambda h, a: a.update(more=np.zeros(3, np.float32)), "more: does not belong"),
    "shape": (entry("params/fc/kernel", np.transpose), "params/fc/kernel: got"),
    "type": (entry("params/scale", lambda a: a.astype(np.float64)), "params/scale: got float64"),
    "format 2": (set_(["format"], 2), "version 2"),
    "format 0": (set_(["format"], 0), "format"),
    "format true": (set_(["format"], True), "format"),
    "no format": (lambda h, a: h.pop("format"), "format"),
    "unknown key": (set_(["more"], 1), "'more': missing, or unknown"),
    "no rule": (lambda h, a: h.pop("rule"), "'rule': missing"),
    "rule": (set_(["rule"], None), "rule: expected a text"),
    "long text": (set_(["name"], "x" * 2000), "name: expected a text"),
    "no examples": (set_(["examples"], 0), "examples"),
    "float examples": (set_(["examples"], 2.0), "examples"),
    "true examples": (set_(["examples"], True), "examples"),
    "huge examples": (set_(["examples"], 10**400), "examples"),
    "negative silo": (set_(["silo"], -1), "silo"),
    "structure": (set_(["structure"], "pickle"), "structure"),
    "unhashable structure": (set_(["structure"], []), "structure"),
    "fisher type": (set_(["fisher_dtype"], "complex64"), "fisher_dtype"),
    "privacy": (set_(["privacy"], 3), "privacy"),
    "huge parameter": (set_(["params", 0, 1], [2**39, 2**39]), "beyond the cap"),
    "negative size": (set_(["params", 0, 1], [-1, -24]), "params"),
    "integers": (set_(["params", 0, 2], "int32"), "params"),
    "same path": (set_(["params", 0, 0], "scale"), "twice"),
    "no parameters": (set_(["params"], []), "at least one"),
    "params": (set_(["params"], {"a": 1}), "params"),
    "static": (set_(["static"], []), r"static: got '\[\]', expected layers"),
    "layers": (set_(["static", "layers"], 3), "layers"),
    "layer": (set_(["static", "layers", 0], 3), r"layers\[0\]"),
    "layer of nothing": (set_(["static", "layers", 0, "weight"], 4), r"layers\[0\]"),
    "layer true": (set_(["static", "layers", 0, "weight"], False), r"layers\[0\]"),
    "layers overlap": (set_(["static", "layers", 0, "weight"], 2), r"layers\["),
    "groups": (set_(["static", "layers", 0, "groups"], 2), r"layers\[0\]"),
    "steps": (set_(["static", "layers", 0, "steps"], [["reshape", [5, 5]]]), r"layers\[0\]: steps"),
    "unknown step": (set_(["static", "layers", 0, "steps"], [["exec", [6, 4]]]), r"layers\[0\]: steps"),
    "axes": (set_(["static", "layers", 0, "steps"], [["transpose", [0, 0, 1]]]), r"layers\[0\]: steps"),
    "many axes": (steps(["reshape", [1] * 70 + [24]], ["reshape", [6, 4]]), r"layers\[0\]: steps: .* at most 32"),
    "long integers": (steps(["reshape", [10**4000] * 20]), "each below"),
    "many steps": (steps(*[["reshape", [6, 4]]] * 65), "steps: got 65, expected"),
    "many parameters": (set_(["params"], [[f"p{n}", [0], "float32"] for n in range(50_001)]), "at most 50000"),
    "terminal": (set_(["name"], "\x1b]0;owned"), "name: expected printable"),
    "terminal by a path": (set_(["params", 3, 0], "\x1b[2J"), "params: expected paths of printable"),
    "terminal by an entry": (lambda h, a: a.update({"\x1b[2J": np.zeros(3)}), r"\\x1b\[2J: does not belong"),
    "no matrix": (set_(["static", "layers", 0, "steps"], []), r"layers\[0\]: steps"),
    "another matrix": (set_(["static", "layers", 0, "steps"], [["reshape", [1, 24]]]), "got|not a layer"),
    "bias": (set_(["static", "layers", 1, "bias"], 3), r"layers\[1\]: bias"),
    "bias is weight": (set_(["static", "layers", 1, "bias"], 2), r"layers\[1\]"),
    "codecs": (set_(["codecs"], {}), "codecs"),
    "codec": (set_(["codecs"], [{"codec": "zip"}]), r"codecs\[0\]"),
    "encoded": (set_(["encoded"], {"params/scale": 0}), "encoded: params/scale"),
    "encoded nothing": (lambda h, a: h.update(codecs=[{"codec": "raw"}], encoded={"zip": 0}), "encoded: no entry"),
    "wrong codec": (
        lambda h, a: h.update(codecs=[{"codec": "cholesky", "inner": {"codec": "raw"}}], encoded={"params/scale": 0}),
        "params/scale: expected a square",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALICE)
@pytest.mark.filterwarnings("ignore:divide by zero|invalid value")
def test_sealed_malice_is_refused_with_a_reason(name):
    change, words = MALICE[name]
    data = resealed(KRONECKER, change)
    with pytest.raises(PayloadError, match=rf"^silo\.file: .*(?:{words})") as refused:
        files.loads(data, file="silo.file")
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_(["static", "rank"], 0), "rank"),
        (set_(["static", "rank"], 10**9), "rank"),
        (set_(["static", "rank"], 3), "fisher/values: got"),
        (set_(["static", "covered"], [2, 0]), "covered"),
        (set_(["static", "covered"], [0, 7]), "covered"),
        (set_(["static", "covered"], [0]), "fisher/vectors/fc/kernel: does not belong"),
        (entry("fisher/values", lambda a: -a), "fisher/values: expected no negative"),
    ],
)
def test_low_rank_malice(change, words):
    data = files.dumps(payload("low_rank"), about("low_rank"))
    with pytest.raises(PayloadError, match=words):
        files.loads(resealed(data, change))


def test_compressed_malice():
    sent = payload("kronecker")
    data = files.dumps(sent, about("kronecker"), plan.fit(sent, about("kronecker"), 100.0))

    def huge_scale(header, arrays):
        arrays["params/scale"][-4:] = np.frombuffer(np.float32(np.inf).tobytes(), np.uint8)

    with pytest.raises(PayloadError, match="params/scale: scale"):
        files.loads(resealed(data, huge_scale))
    with pytest.raises(PayloadError, match="params/scale: got uint8"):
        files.loads(resealed(data, entry("params/scale", lambda a: a[:-1])))


def test_what_moves_a_terminal_is_not_written():
    with pytest.raises(ValueError, match="name: expected printable"):
        files.dumps(payload(None), about(None, name="\x1b]0;owned"))
    with pytest.raises(ValueError, match="paths of printable"):
        files.dumps(payload(None)._replace(params={"\x1b": jnp.zeros(3)}), about(None))


def test_numbers_beyond_the_type_that_jax_has():
    """A float64 file in a process without float64: finite in the file is not finite in use."""
    sent = payload("diagonal", dtype=jnp.float64)
    data = files.dumps(
        sent._replace(statistics=jax.tree.map(lambda leaf: leaf * 1e60, sent.statistics)), about("diagonal")
    )
    assert files.loads(data)[0].statistics.values["scale"].dtype == jnp.float64
    with jax.enable_x64(False), pytest.raises(PayloadError, match="fisher/diagonal/conv/kernel: expected finite"):
        files.loads(data)


@cache
def bomb(n):
    """A rank-one file of a thousand numbers that announces a million."""
    tree = {"w": jnp.zeros((n, 1), jnp.float32)}
    layer = ff.curvature.Layer(0, None, (n, 1), (), ())
    factors = (jnp.ones((n, n), jnp.float32),), (jnp.ones((1, 1), jnp.float32),)
    sent = ff.Payload(jnp.asarray(1.0), tree, Kronecker(*factors, {}, (layer,), jax.tree.structure(tree)))
    chosen = {"fisher/inputs/w": files.Eigen(1, Uniform(7), Uniform(8, signed=False))}
    return files.dumps(sent, about("kronecker"), chosen)


def test_decompression_has_a_cap():
    data, n = bomb(1000), 1000
    assert len(data) < 50_000
    with pytest.raises(PayloadError, match="after decompression, the cap is 100000"):
        files.loads(data, limits=Limits(decoded_bytes=100_000))
    with pytest.raises(PayloadError, match="fisher/inputs/w: 48000000 bytes to decode and check, the cap is 47999999"):
        files.loads(data, limits=Limits(working_bytes=48 * n**2 - 1))
    assert files.loads(data, limits=Limits(working_bytes=48 * n**2))[0].statistics.inputs[0].shape == (n, n)


def grows(small, data, limits, found):
    """Bytes by which a process grows while it reads a file."""
    files.loads(small)  # so that everything is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files.loads(data, limits=limits)
    found.put(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def test_memory_stays_below_the_caps():
    """Ten kilobytes that need all that the caps allow: one number more is refused (above)."""
    n = 1000
    data, limits = bomb(n), Limits(file_bytes=1 << 16, decoded_bytes=(n**2 + n + 1) * 4, working_bytes=48 * n**2)
    found = processes.CONTEXT.Queue()
    reader = processes.start(grows, bomb(10), data, limits, found)
    grown = found.get(timeout=60)
    reader.join(timeout=60)
    assert grown < 3 * limits.file_bytes + 2 * limits.decoded_bytes + limits.working_bytes


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(file_bytes=len(KRONECKER) - 1), "bytes, which is the cap"),
        (Limits(header_bytes=100), "header has .* the cap is 100"),
        (Limits(entries=3), "entries, the cap is 3"),
    ],
)
def test_caps(limits, words, tmp_path):
    with pytest.raises(PayloadError, match=words):
        files.loads(KRONECKER, limits=limits)
    (tmp_path / "a").write_bytes(KRONECKER)
    with pytest.raises(PayloadError, match=words):
        files.read(tmp_path / "a", limits=limits)


def plain(header=None):
    return safetensors.numpy.save({"a": np.zeros(2, np.float32)}, metadata=header and {"fedfisher": header})


DAMAGE = {
    "empty": b"",
    "short": KRONECKER[:7],
    "cut in the header": KRONECKER[:200],
    "cut in the data": KRONECKER[:-1],
    "longer": KRONECKER + b"\0",
    "one bit": KRONECKER[:-3] + bytes([KRONECKER[-3] ^ 1]) + KRONECKER[-2:],
    "huge header": b"\xff" * 8 + KRONECKER[8:],
    "deep JSON": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "another library's": plain(),
    "their types": safetensors.numpy.save({"a": np.zeros(2, np.int64)}),
    "no header": plain("[1]"),
    "header is no JSON": plain("{"),
    "not a number": plain('{"a": NaN}'),
    "beyond floats": plain('{"a": 1e999}'),
    "digits": plain('{"a": 1' + 5000 * "1" + "}"),
    "twice": plain('{"a": 1, "a": 2}'),
    "pickle": b"\x80\x04\x95\x1c" + 7 * b"\0" + b"\x8c\x05posix\x94\x8c\x06system\x94\x93\x94R.",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name):
    with pytest.raises(PayloadError, match="^payload: "):
        files.loads(DAMAGE[name])

import json
import os
import resource
from functools import cache
from pathlib import Path
from stat import S_IMODE, S_ISDIR

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import safetensors.numpy
from samples import LAYERS, RULES, START, STRUCTURES, about, opened, params, payload, psd, resealed, same

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.curvature import Kronecker
from fedfisher_jax.merge.catalogue import RULES as RULES_KNOWN
from fedfisher_jax.payload import Limits, PayloadError, Uniform, plan

FIXTURES = Path(__file__).parent / "fixtures"
KRONECKER = files.dumps(payload("kronecker"), about("kronecker"))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_uncompressed_is_bit_for_bit(structure, dtype):
    sent = payload(structure, dtype=dtype)
    if (
        dtype == jnp.bfloat16
    ):  # rounded to bfloat16 a matrix of the samples is not semi-definite: float32 as in practice
        sent = sent._replace(fisher=payload(structure).fisher)
    got, header = files.loads(files.dumps(sent, about(structure)))
    assert same(got, sent)
    assert header.about == about(structure) and header.examples == 12 and header.plan == {}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_compressed_is_what_the_codecs_say(structure):
    sent = payload(structure)
    chosen = plan.fit(sent, about(structure), 100.0)
    data = files.dumps(sent, about(structure), chosen)
    got, header = files.loads(data)
    for name, array in files.file.entries(sent).items():
        codec, shape, dtype = chosen[name], array.shape, array.dtype
        expected = files.codecs.decode(codec, files.codecs.encode(codec, array), shape, dtype)
        np.testing.assert_array_equal(files.file.entries(got)[name], expected)
    assert header.plan == chosen and header.bits == 8 * len(data) == files.file.size_bits(
        sent, about(structure), chosen
    )


def test_equal_input_makes_equal_bytes():
    assert files.dumps(payload("kronecker"), about("kronecker")) == KRONECKER


def test_bits_of_data_are_bytes_of_data():
    """Everything beyond the entries' own bytes is the two headers: nothing is padded or written twice."""
    sent = payload("kronecker")
    data = files.dumps(sent, about("kronecker"), plan.authors(sent))
    size = int.from_bytes(data[:8], "little")
    counted = sum(
        files.codecs.bits(plan.authors(sent)[name], array.shape, array.dtype)
        for name, array in files.file.entries(sent).items()
    )
    assert 8 * (len(data) - 8 - size) == counted


def test_anybody_can_read_it(tmp_path):
    files.write(tmp_path / "a.safetensors", payload("diagonal"), about("diagonal"))
    arrays = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(arrays["params/fc/kernel"], payload("diagonal").params["fc"]["kernel"])
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        header = json.loads(file.metadata()["fedfisher"])
    assert header["structure"] == "diagonal" and header["examples"] == 12 and header["format"] == 1


def test_other_trees_need_the_start():
    """Lists and tuples have no form in paths: their order would be guessed."""
    tree = [{"w": jnp.ones(2) * n} for n in range(11)]
    sent = ff.Payload(jnp.asarray(3.0), tree)
    data = files.dumps(sent, about(None, start=files.fingerprint(tree)))
    assert same(files.loads(data, tree)[0], sent)
    with pytest.raises(PayloadError, match="nested dictionaries"):
        files.loads(data)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (payload(None)._replace(weight=2.5), "weight"),
        (payload(None)._replace(weight=0.0), "weight"),
        (payload(None)._replace(fisher={"example": jnp.zeros(3)}), "dict has no form"),
        (payload(None)._replace(params={"w": jnp.array([jnp.nan])}), "params/w: expected finite"),
        (payload("diagonal")._replace(fisher=ff.Diagonal(params())), "fisher/diagonal/.*: expected no negative"),
        (payload(None)._replace(params={"w": jnp.array([1])}), "int"),
    ],
)
def test_what_readers_refuse_is_not_written(sent, words):
    with pytest.raises(ValueError, match=words):
        files.dumps(sent, about(None))


def set_(path, value):
    def change(header, arrays):
        place = header
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def steps(*values):
    return set_(["static", "layers", 0, "steps"], values)


def entry(name, change):
    return lambda header, arrays: arrays.update({name: change(arrays[name])})


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
    "static": (set_(["static"], []), "static: expected layers"),
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
    data = files.dumps(sent._replace(fisher=jax.tree.map(lambda leaf: leaf * 1e60, sent.fisher)), about("diagonal"))
    assert files.loads(data)[0].fisher.values["scale"].dtype == jnp.float64
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
    assert files.loads(data, limits=Limits(working_bytes=48 * n**2))[0].fisher.inputs[0].shape == (n, n)


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


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(PayloadError, match="no such file"):
            files.read(path)


def test_the_start_is_compared():
    files.loads(KRONECKER, START, layers=LAYERS)
    other = jax.tree.map(lambda leaf: leaf + 1, START)
    with pytest.raises(PayloadError, match="start: made from another starting model"):
        files.loads(KRONECKER, other)
    with pytest.raises(PayloadError, match="params: got 'conv/kernel'"):
        files.loads(KRONECKER, {"conv": {"kernel": jnp.zeros((2, 3, 5), jnp.float32)}})
    with pytest.raises(PayloadError, match="got 4 leaves, the starting model has 5"):
        files.loads(KRONECKER, START | {"zoo": jnp.zeros(1)})
    with pytest.raises(PayloadError, match=r"layers\[1\]: not a layer of the model"):
        files.loads(KRONECKER, START, layers=LAYERS[:1])
    reshaped = ff.curvature.Layer(0, None, (2, 3, 4), (), (("reshape", (1, 24)),))
    with pytest.raises(PayloadError, match=r"layers\[0\]: not a layer of the model"):
        files.loads(KRONECKER, START, layers=(reshaped, LAYERS[1]))


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.safetensors")), ids=lambda path: path.stem)
def test_files_of_earlier_versions_are_read_for_ever(path):
    got, header = files.read(path, START, layers=LAYERS, parity=True)
    expected = np.load(path.with_suffix(".npz"))
    entries = files.file.entries(got)
    assert set(entries) == set(expected.files)
    assert header.about.silo == 3 and header.examples == 15 and header.about.start == files.fingerprint(START)
    for name, array in entries.items():
        assert array.dtype == expected[name].dtype
        if isinstance(header.plan.get(name), files.Cholesky | files.Eigen | files.Singular):  # products round
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6 * abs(expected[name]).max())
        else:
            np.testing.assert_array_equal(array, expected[name])


def test_there_are_fixtures_of_every_version():
    versions = {int(path.name[1]) for path in FIXTURES.glob("*.safetensors")}
    assert versions == set(range(1, files.header.FORMAT + 1))


def written(folder, silo, structure="kronecker", sent=None, **changes):
    path = folder / f"{silo}-{len(list(folder.iterdir()))}.safetensors"
    files.write(path, sent or payload(structure, silo), about(structure, silo, **changes))
    return path


def test_a_merge_has_an_order_of_its_own(tmp_path):
    paths = [written(tmp_path, silo) for silo in (2, 0, 10, 1)]
    found = files.read_all(paths, START)
    assert [header.about.silo for _, header in found] == [0, 1, 2, 10]
    merged = [
        ff.merge_payloads(ff.fedavg(lambda p, x: x, ff.categorical()), [p for p, _ in files.read_all(order)]).params
        for order in (paths, paths[::-1])
    ]
    assert same(*merged)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"silo": 0, "name": "a"}, "silo: number 0 'a' is in"),
        ({"start": "0" * 64}, "start: "),
        ({"rule": "fedavg"}, "rule: 'fedavg', but 'fedfisher-kfac' in "),
        ({"likelihood": "gaussian"}, "likelihood: "),
        ({"kind": "empirical"}, "kind: "),
        ({"structure": "diagonal", "rule": "fedfisher-kfac"}, "structure: "),
        ({"sent": payload("kronecker")._replace(params={"w": jnp.ones(3)}, fisher=None)}, "structure: "),
    ],
)
def test_files_of_different_merges(changes, words, tmp_path):
    first = written(tmp_path, 0, name="a")
    second = written(tmp_path, **({"silo": 1} | changes))
    with pytest.raises(PayloadError, match=f"^{second}: {words}"):
        files.read_all([first, second])


def test_headers_are_compared_before_anything_is_decoded(tmp_path):
    """A merge of averages never computes with the matrix that one file, the first of them even, says it has."""
    hostile, good = tmp_path / "0", written(tmp_path, 1, None)
    hostile.write_bytes(resealed(files.dumps(payload("full"), about(None)), entry("fisher/matrix", np.negative)))
    with pytest.raises(PayloadError, match="fisher/matrix: expected a positive semi-definite"):
        files.read_all([hostile], START)
    for order in ([hostile, good], [good, hostile]):
        with pytest.raises(PayloadError, match=f"^{order[1]}: structure: not that of {order[0]}"):
            files.read_all(order, START)


def test_how_many(tmp_path):
    path = written(tmp_path, 0)
    with pytest.raises(PayloadError, match="at least one"):
        files.read_all([])
    with pytest.raises(PayloadError, match="2 payloads, the cap is 1"):
        files.read_all([path, path], limits=Limits(files=1))


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ValueError, match="out: cannot write"):
        files.write(path, payload(None), about(None))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_their_writer_wants_and_survive(mask, mode, tmp_path, monkeypatch):
    folders, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: folders.append(S_ISDIR(os.fstat(handle).st_mode)) or sync(handle))
    before = os.umask(mask)
    try:
        files.write(tmp_path / "a", payload(None), about(None))
    finally:
        os.umask(before)
    assert S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert folders == [False, True]  # the file, and then its name


def test_every_rule_of_the_samples_is_known():
    assert set(RULES.values()) <= set(RULES_KNOWN) and psd(0, 3).shape == (3, 3)
    assert set(opened(KRONECKER)[1]) == set(files.file.entries(payload("kronecker")))

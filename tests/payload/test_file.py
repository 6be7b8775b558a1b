import json
import os
from pathlib import Path
from stat import S_IMODE, S_ISDIR

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from samples import LAYERS, RULES, START, STRUCTURES, about, entry, opened, params, payload, psd, resealed, same

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.merge.catalogue import RULES as RULES_KNOWN
from fedfisher_jax.payload import Limits, PayloadError, plan

FIXTURES = Path(__file__).parent / "fixtures"
KRONECKER = files.dumps(payload("kronecker"), about("kronecker"))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_uncompressed_is_bit_for_bit(structure, dtype):
    sent = payload(structure, dtype=dtype)
    if (
        dtype == jnp.bfloat16
    ):  # rounded to bfloat16 a matrix of the samples is not semi-definite: float32 as in practice
        sent = sent._replace(statistics=payload(structure).statistics)
    got, header = files.loads(files.dumps(sent, about(structure)))
    assert same(got, sent)
    assert header.about == about(structure) and header.examples == 12 and header.plan == {}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_compressed_is_what_the_codecs_say(structure):
    sent = payload(structure)
    chosen = plan.fit(sent, about(structure), 100.0)
    data = files.dumps(sent, about(structure), chosen)
    got, header = files.loads(data)
    for name, array in files._file.entries(sent).items():
        codec, shape, dtype = chosen[name], array.shape, array.dtype
        expected = files._codecs.decode(codec, files._codecs.encode(codec, array), shape, dtype)
        np.testing.assert_array_equal(files._file.entries(got)[name], expected)
    assert header.plan == chosen and header.bits == 8 * len(data) == files._file.size_bits(
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
        files._codecs.bits(plan.authors(sent)[name], array.shape, array.dtype)
        for name, array in files._file.entries(sent).items()
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
        (payload(None)._replace(weight=jnp.inf), "weight"),
        (payload(None)._replace(statistics={"example": jnp.zeros(3)}), "dict has no form"),
        (payload(None)._replace(params={"w": jnp.array([jnp.nan])}), "params/w: expected finite"),
        (payload("diagonal")._replace(statistics=ff.Diagonal(params())), "fisher/diagonal/.*: expected no negative"),
        (payload(None)._replace(params={"w": jnp.array([1])}), "int"),
        (payload(None)._replace(params={"w": 1.0}), "params: got w of float, expected an array"),
    ],
)
def test_what_readers_refuse_is_not_written(sent, words):
    with pytest.raises(ValueError, match=words):
        files.dumps(sent, about(None))


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
    entries = files._file.entries(got)
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
    assert versions == set(range(1, files._header.FORMAT + 1))


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
        ({"silo": 0, "name": "b"}, "silo: number 0 is in"),
        ({"start": "0" * 64}, "start: "),
        ({"rule": "fedavg"}, "rule: 'fedavg', but 'fedfisher-kfac' in "),
        ({"likelihood": "gaussian"}, "likelihood: "),
        ({"kind": "empirical"}, "kind: "),
        ({"structure": "diagonal", "rule": "fedfisher-kfac"}, "structure: "),
        ({"sent": payload("kronecker")._replace(params={"w": jnp.ones(3)}, statistics=None)}, "structure: "),
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


def test_files_are_read_one_at_a_time_after_all_headers(tmp_path):
    paths = [written(tmp_path, silo) for silo in (2, 0, 1)]
    each = files.read_each(paths, START)
    sent, header = next(each)
    assert header.about.silo == 0 and same(sent, files.read(paths[1], START)[0])
    written_again = files.dumps(payload("kronecker", 5), about("kronecker", 1))
    paths[2].write_bytes(written_again)
    with pytest.raises(PayloadError, match=f"^{paths[2]}: changed while it was being read"):
        next(each)
    with pytest.raises(PayloadError, match="is in"):  # at once, not when the first one is asked for
        files.read_each([paths[0], paths[0]], START)


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
    assert set(opened(KRONECKER)[1]) == set(files._file.entries(payload("kronecker")))

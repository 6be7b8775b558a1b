"""Payload files of a malicious or careless silo: refused in a line that names the file, soon and in little memory."""

import json
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from commands import command, refused

from fedfisher_jax.payload import Limits, PayloadError, Singular, Uniform, header_of, read
from fedfisher_jax.payload import _codecs as codecs
from fedfisher_jax.payload import _container as container
from fedfisher_jax.payload._codecs_json import to_json

NETWORK = ("--model", "mlp", "--input-shape", 8, "--outputs", 3)
RULE = ("--epochs", 1, "--rule", "fedavg")


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A start and the payloads of two silos."""
    folder = tmp_path_factory.mktemp("made")
    assert command("init", *NETWORK, "--out", folder / "start.safetensors")[0] == 0
    for silo in range(2):
        random = np.random.default_rng(silo)
        x, y = random.normal(size=(60, 8)).astype(np.float32), random.integers(0, 3, 60)
        np.savez(folder / f"d{silo}.npz", x=x, y=y)
        words = ("--data", folder / f"d{silo}.npz", "--silo", silo, *RULE, "--start", folder / "start.safetensors")
        assert command("measure", *words, "--out", folder / f"p{silo}.safetensors")[0] == 0
    return folder


@pytest.fixture
def good(sent, tmp_path, monkeypatch):
    """These files in a new current folder; the outline, the body, the header and the arrays of the first payload."""
    shutil.copytree(sent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    data = Path("p0.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, arrays = container.unpack(data, Limits(), "p0")
    return json.loads(data[8 : 8 + size]), data[8 + size :], header, arrays


def raw(outline, body):
    text = json.dumps(outline).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def is_refused(data, words=""):
    Path("evil.safetensors").write_bytes(data)
    for command_words in (
        ("inspect", "evil.safetensors"),
        ("merge", "p1.safetensors", "evil.safetensors", "--out", "m"),
    ):
        line = refused(*command_words)
        assert "evil.safetensors" in line and words in line and len(line) < 600


SHAPES = {
    "zero hides": ([0, 2**62, 2**62], 0),
    "zero hides one": ([0, 2**63], 0),
    "zero hides many": ([0] + [2**39] * 5, 0),
    "65 axes": ([1] * 65, 4),
    "33 axes": ([1] * 33, 4),
    "negative": ([-1, -1], 4),
    "of floats": ([1.0], 4),
    "of truths": ([True], 4),
    "no list": (1, 4),
    "none": (None, 4),
    "digits": ([10**4000], 4),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_no_array_has(name, good):
    shape, size = SHAPES[name]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    is_refused(raw({"__metadata__": good[0]["__metadata__"], "z": entry}, bytes(size)))


@pytest.mark.parametrize("entry", [None, 1, [], "F32", {}])
def test_entries_that_are_none(entry, good):
    is_refused(raw({"__metadata__": good[0]["__metadata__"], "z": entry}, b""))


def nested(kind, depth, text):
    first, last = ('{"a":', "}") if kind is dict else ("[", "]")
    return first * depth + text + last * depth


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("field", ["privacy", "static", "name", "codecs", "more"])
def test_fields_that_are_nested_deep(field, kind, good):
    for depth in (31, 33, 300, 600, 5000):
        text = json.dumps({**good[2], field: "deep"}).replace('"deep"', nested(kind, depth, "1"), 1)
        is_refused(raw({**good[0], "__metadata__": {container.KEY: text}}, good[1]))
        outline, size = json.dumps(good[0]).replace('"F32"', nested(kind, depth, '"F32"'), 1).encode(), len(good[1])
        is_refused(len(outline).to_bytes(8, "little") + outline + good[1][:size])


def test_privacy_is_flat(good):
    for value in ({"a": {}}, {"a": []}, {"a": 10**400}, {"a": "x" * 1001}, {"a": "\x1b"}, {"\x1b": 1}, 3, [], "x"):
        is_refused(container.pack({**good[2], "privacy": value}, good[3]), "privacy")
    is_refused(container.pack({**good[2], "privacy": {str(n): 1 for n in range(65)}}, good[3]), "privacy")


def test_a_silo_counts_once_whatever_it_is_called(good):
    for name in ("again", "Again ", ""):
        words = ("--silo", 0, "--name", name, *RULE, "--seed", 3, "--out", "again.safetensors")
        assert command("measure", "--data", "d0.npz", *words)[0] == 0
        assert "number 0 is in" in refused(
            "merge", "p0.safetensors", "again.safetensors", "p1.safetensors", "--out", "m"
        )
    Path("copies").mkdir()
    Path("copies/p0.safetensors").write_bytes(Path("p0.safetensors").read_bytes())
    assert "number 0 is in" in refused("merge", "p0.safetensors", "copies", "--out", "m")


def test_the_same_arrays_under_another_number_are_said(good):
    Path("seven.safetensors").write_bytes(container.pack({**good[2], "silo": 7, "name": "other"}, good[3]))
    status, text = command("merge", "p0.safetensors", "seven.safetensors", "p1.safetensors", "--out", "m.safetensors")
    assert status == 0 and "silos 0 and 7 sent the same arrays" in text
    assert json.loads(Path("m.json").read_text())["same_arrays"] == [[0, 7]]
    assert "same arrays" not in command("merge", "p0.safetensors", "p1.safetensors", "--out", "m.safetensors")[1]


def announced(header, n, how, layers=1):
    """A few kilobytes that decode to matrices of n × n."""
    small = Uniform(1, False)
    wide = {"singular": Singular(1, Uniform(1)), "eigen": codecs.Eigen(1, Uniform(1), small), "root": None}[how]
    names = [f"w{k}" for k in range(layers)]
    header = {
        **header,
        "structure": "gram",
        "fisher_dtype": "float32",
        "kind": "exact",
        "params": [[name, [n, 1], "float32"] for name in names],
        "rule": "x",
        "codecs": [to_json(wide), to_json(small)],
        "encoded": {f"params/{name}": 1 for name in names} | {f"fisher/inputs/{name}": 0 for name in names},
        "static": {"layers": [{"weight": k, "bias": None, "groups": 1, "steps": []} for k in range(layers)]},
    }
    size = codecs.joined_layout(small, (n, 1), np.float32)[0], codecs.joined_layout(wide, (n, n), np.float32)[0]
    arrays = {f"params/{name}": np.zeros(size[0], np.uint8) for name in names}
    return container.pack(header, arrays | {f"fisher/inputs/{name}": np.zeros(size[1], np.uint8) for name in names})


@pytest.mark.parametrize("how", ["singular", "eigen"])
@pytest.mark.parametrize(("n", "layers"), [(3000, 1), (9000, 1), (1000, 30)])
def test_few_bytes_that_announce_much_work(n, layers, how, good):
    Path("large.safetensors").write_bytes(announced(good[2], n, how, layers))
    begun = time.process_time()
    with pytest.raises(PayloadError, match="large.safetensors: .*Σ n³|bytes to decode"):
        read("large.safetensors")
    assert time.process_time() - begun < 5  # half a minute and more, if it were done


def test_reading_asks_for_no_more_memory_than_the_file_has(good):
    """The cap on what a process may have in all lies 500 MB above what it has, far below the 2 GiB of --max-bytes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20, before[1]))
    try:
        data = container.read_bytes("p0.safetensors", Limits())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert header_of(data).about.silo == 0
    for most in (2**40, 2**63 - 1):
        assert command("merge", "p0.safetensors", "--max-bytes", most, "--out", "m.safetensors")[0] == 0


def test_a_huge_batch_is_one_of_the_rows_that_are_there(good):
    def measured(batch):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        words = ("--silo", 0, *RULE, "--batch-size", batch, "--out", "b.safetensors")
        assert command("measure", "--data", "d0.npz", *words)[0] == 0
        return Path("b.safetensors").read_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used

    one, _ = measured(1024)
    huge, grown = measured(100_000_000)
    assert huge == one and grown < 200 * 1024  # KiB


@pytest.mark.parametrize(
    ("text", "written"), [("x" * 1000, True), ("x" * 1001, False), ("\x1b", False), ("é" * 1000, True)]
)
def test_writers_refuse_what_readers_refuse(text, written, good):
    words = ("measure", "--data", "d0.npz", *RULE, "--out", "named.safetensors", "--name", text)
    if written:
        assert command(*words)[0] == 0
        assert command("inspect", "named.safetensors")[0] == 0
    else:
        assert "name: got" in refused(*words)

"""No command writes over what it reads, over a start that a federation agreed on, or over somebody's other files."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from commands import command, refused

from fedfisher_jax import _files
from fedfisher_jax.silos import _model_file as model_file

SHORT = ("--epochs", 1, "--rule", "fedavg")
NETWORK = ("--model", "mlp", "--input-shape", 8, "--outputs", 3)
ATTEMPTS = [
    ("d.npz", ("measure", "--data", "d.npz", *SHORT, "--out", "d.npz")),
    ("d.npz", ("measure", "--data", "d.npz", *SHORT, "--out", "./rows/../d.npz")),
    ("d.npz", ("measure", "--data", "d.npz", *SHORT, "--out", "hard.npz")),
    ("d.npz", ("measure", "--data", "d.npz", *SHORT, "--out", "soft.npz")),
    ("start.safetensors", ("measure", "--data", "d.npz", *SHORT, "--out", "start.safetensors")),
    (
        "trained.safetensors",
        ("measure", "--data", "d.npz", "--rule", "fedavg", "--checkpoint", "trained.safetensors")
        + ("--out", "trained.safetensors"),
    ),
    (
        "models/one.safetensors",
        ("measure", "--data", "rows", "--rule", "fedavg", "--checkpoint", "models", "--out", "models"),
    ),
    (
        "models/one.safetensors",
        ("measure", "--data", "rows", "--rule", "fedavg", "--checkpoint", "models", "--out", "rows/../models"),
    ),
    ("start.safetensors", ("init", *NETWORK, "--seed", 5)),
    ("d.npz", ("init", "--data", "d.npz", "--out", "d.npz")),
    ("d.npz", ("init", "--data", "d.npz", "--out", "hard.npz", "--overwrite")),
    (
        "trained.safetensors",
        ("init", *NETWORK, "--checkpoint", "trained.safetensors", "--out", "trained.safetensors", "--overwrite"),
    ),
    ("p.safetensors", ("merge", "p.safetensors", "--out", "p.safetensors")),
    ("start.safetensors", ("merge", "p.safetensors", "--out", "start.safetensors")),
    ("package.json", ("merge", "p.safetensors", "--out", "package.safetensors")),
    ("list.json", ("merge", "p.safetensors", "--out", "list.safetensors")),
]


@pytest.fixture
def federation(folder):
    assert command("measure", "--data", "d.npz", *SHORT, "--out", "p.safetensors")[0] == 0
    assert command("merge", "p.safetensors", "--out", "trained.safetensors")[0] == 0
    Path("models").mkdir(), Path("rows").mkdir()
    shutil.copy("trained.safetensors", "models/one.safetensors"), shutil.copy("d.npz", "rows/one.npz")
    os.link("d.npz", "hard.npz"), os.symlink("d.npz", "soft.npz")
    Path("package.json").write_text('{"name": "somebody\'s"}'), Path("list.json").write_text("[1")
    return folder


@pytest.mark.parametrize(("watched", "words"), ATTEMPTS, ids=lambda value: " ".join(map(str, value))[:80])
def test_nothing_that_was_there_is_lost(watched, words, federation):
    before = {path: path.read_bytes() for path in federation.rglob("*") if path.is_file()}
    assert "out: " in refused(*words)
    assert {path: path.read_bytes() for path in federation.rglob("*") if path.is_file()} == before
    assert Path(watched).resolve() in {path.resolve() for path in before}


def test_what_may_be_written_again(federation):
    assert command("init", *NETWORK, "--seed", 5, "--overwrite")[0] == 0
    assert command("init", *NETWORK, "--overwrite")[0] == 0
    for _ in range(2):
        assert command("measure", "--data", "d.npz", *SHORT, "--out", "p.safetensors")[0] == 0
        assert command("merge", "p.safetensors", "--out", "again.safetensors")[0] == 0


def test_the_reports_hash_is_that_of_the_bytes_written(federation, monkeypatch):
    written = model_file.write

    def and_another_program_writes(path, *rest):
        data = written(path, *rest)
        Path(path).write_bytes(b"of another program")
        return data

    with monkeypatch.context() as patched:
        patched.setattr(model_file, "write", and_another_program_writes)
        assert command("merge", "p.safetensors", "--out", "again.safetensors")[0] == 0
    assert command("merge", "p.safetensors", "--out", "whole.safetensors")[0] == 0
    digest = hashlib.sha256(Path("whole.safetensors").read_bytes()).hexdigest()
    assert {json.loads(Path(f"{name}.json").read_text())["sha256"] for name in ("again", "whole")} == {digest}


BAD_OUTS = ["nothing/x", "models", ".", "d.npz/x", "x" * 300, "a\0b", "/proc/x"]


@pytest.mark.parametrize("out", BAD_OUTS, ids=repr)
def test_a_bad_out_is_refused_before_anything_is_done(out, federation, monkeypatch):
    def trains(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr("fedfisher_jax.cli._measure.train_and_measure", trains)
    monkeypatch.setattr("fedfisher_jax.cli._merge.merge_clients", trains)
    monkeypatch.setattr("fedfisher_jax.cli._init.run_keys", trains)
    for words in (
        ("measure", "--data", "d.npz", *SHORT),
        ("merge", "p.safetensors"),
        ("init", *NETWORK, "--overwrite"),
    ):
        assert "out: " in refused(*words, "--out", out)


def test_long_names_of_files_are_written(federation):
    name = "x" * 243 + ".safetensors"
    assert command("measure", "--data", "d.npz", *SHORT, "--out", name)[0] == 0
    assert Path(name).stat().st_size > 1000


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with _files.only_writer(tmp_path):
            inside.set()
            leave.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert inside.wait(60)
    run = ("run", "--epochs", 1, "--clients", 2, "--rules", "fedavg", "--alpha", 1, "--out", tmp_path)
    assert f"out: another run is writing to {tmp_path}" in refused(*run)
    leave.set()
    other.join()
    assert command(*run)[0] == 0 and (tmp_path / "result.json").exists()


def test_an_example_leaves_other_files_alone(tmp_path):
    (tmp_path / "silo0.npz").write_bytes(b"somebody's")
    assert "expected a folder that is empty" in refused("example", "--out", tmp_path)
    assert (tmp_path / "silo0.npz").read_bytes() == b"somebody's"


def test_names_of_files_are_not_written_unless_asked_for(federation):
    from fedfisher_jax import payload

    words = ("measure", "--data", "rows", "--rule", "fedavg", "--checkpoint", "models")
    assert command(*words, "--out", "sent")[0] == 0
    assert payload.read("sent/one.safetensors")[1].about.name == ""
    assert command(*words, "--out", "sent", "--name", "Berlin")[0] == 0
    assert payload.read("sent/one.safetensors")[1].about.name == "Berlin"
    assert command("init", *NETWORK, "--checkpoint", "trained.safetensors", "--out", "secret.safetensors")[0] == 0
    assert model_file.read("secret.safetensors").made_by == "init, a checkpoint"
    for path in ("secret.safetensors", "sent/one.safetensors", "p.safetensors"):
        for name in (b"trained", b"d.npz", b"one.", b"rows", b"models"):
            assert name not in Path(path).read_bytes()

"""A silo's commands one by one: what they refuse in a line, noise that says so, names, and its own model."""

import json
import shutil
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fedfisher_jax as ff
from fedfisher_jax import payload
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.cli import _measure
from fedfisher_jax.payload import _container as container
from fedfisher_jax.silos import _model_file as model_file

NEEDS_TORCH = "math:prod() failed" if find_spec("torchax") else "needs pip install 'fedfisher-jax[torch]'"


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A start and a silo's data, without training anything."""
    folder = tmp_path_factory.mktemp("small")
    command("init", "--input-shape", "3", "--outputs", "2", "--out", folder / "start.safetensors")
    np.savez(folder / "data.npz", x=np.ones((4, 3), np.float32), y=np.array([0, 1, 1, 0]))
    np.savez(folder / "labels.npz", x=np.ones((4, 3), np.float32), y=np.array([0, 1, 2, 0]))
    np.savez(folder / "wide.npz", x=np.ones((4, 5), np.float32), y=np.array([0, 1, 1, 0]))
    np.savez(folder / "nan.npz", x=np.full((4, 3), np.nan), y=np.array([0, 1, 1, 0]))
    np.savez(folder / "pickled.npz", x=np.array([object()]), y=np.array([0]))
    np.savez(folder / "names.npz", a=np.zeros(1))
    np.savez(folder / "lengths.npz", x=np.ones((4, 3), np.float32), y=np.array([0, 1]))
    (folder / "no.npz").write_bytes(b"no archive")
    (folder / "broken.safetensors").write_bytes(b"broken")
    safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, folder / "other.safetensors")
    start = model_file.read(folder / "start.safetensors")
    said = payload.About("fedavg", "categorical", payload.fingerprint(start.params))
    payload.write(folder / "one.safetensors", ff.Payload(jnp.asarray(4.0), start.params), said)
    foreign = payload.About("evil:rule", "categorical", payload.fingerprint(start.params))
    payload.write(folder / "foreign.safetensors", ff.Payload(jnp.asarray(4.0), start.params), foreign)
    slow = payload.About("fedavg,iterations=9", "categorical", payload.fingerprint(start.params))
    payload.write(folder / "slow.safetensors", ff.Payload(jnp.asarray(4.0), start.params), slow)
    model_file.write(folder / "own.safetensors", model_file.Kind("os:mkdir", (3,), 2), start.params, "somebody")
    (folder / "folder").mkdir()
    return folder


INIT = "init", "--data", "digits", "--out", "new"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init", "--out", "new"], "input_shape: got none, expected sizes of an example"),
        (["init", "--input-shape", "3", "--likelihood", "gaussian", "--out", "new"], "outputs: got none, expected"),
        ([*INIT, "--model", "nothing"], "name: got 'nothing'"),
        ([*INIT, "--model", "no_such:net"], "model: cannot import"),
        ([*INIT, "--model", "math:remainder"], "model: math:remainder"),
        ([*INIT, "--model", "operator:eq"], "returned bool, expected a pair of functions"),
        ([*INIT, "--model", "math:prod"], "model: math:prod((8, 8, 1), 10) failed"),
        ([*INIT, "--likelihood", "x"], "likelihood: got 'x'"),
        ([*INIT, "--seed", "-1"], "seed"),
        (["init", "--data", "digits", "--out", "nothing/start"], "out: cannot write"),
        (["init", "--data", "digits"], "start.safetensors is there already"),
        ([*INIT, "--checkpoint", "other.safetensors"], "other.safetensors: parameters: missing"),
        ([*INIT, "--checkpoint", "broken.safetensors"], "broken.safetensors: not a safetensors"),
        (["measure", "--data", "nothing.npz"], "data: nothing.npz"),
        (["measure", "--data", "nothing"], "got the data set 'nothing'"),
        (["measure", "--data", "no.npz"], "data: no.npz"),
        (["measure", "--data", "names.npz"], "it has a"),
        (["measure", "--data", "pickled.npz"], "data: pickled.npz"),
        (["measure", "--data", "nan.npz"], "NaN or infinite"),
        (["measure", "--data", "lengths.npz"], "N targets"),
        (["measure", "--data", "labels.npz"], "expected 0 to 1 for categorical"),
        (["measure", "--data", "wide.npz"], "the model cannot take"),
        (["measure", "--data", "data.npz", "--start", "nothing"], "nothing: no such file"),
        (["measure", "--data", "data.npz", "--start", "one.safetensors"], "one.safetensors: not a model file"),
        (["measure", "--data", "data.npz", "--start", "own.safetensors"], "say --model os:mkdir"),
        (["measure", "--data", "data.npz", "--model", "math:prod"], "model: it is of 'mlp'"),
        (["measure", "--data", "data.npz", "--rule", "nothing"], "rules: got 'nothing'"),
        (["measure", "--data", "data.npz", "--epochs", "0"], "epochs: got 0"),
        (["measure", "--data", "data.npz", "--learning-rate", "nan"], "learning_rate"),
        (["measure", "--data", "data.npz", "--momentum", "1"], "momentum: got 1.0"),
        (["measure", "--data", "data.npz", "--momentum", "nan"], "momentum: got nan"),
        (
            ["measure", "--data", "data.npz", "--checkpoint", "start.safetensors", "--epochs", "3", "--augment"],
            "epochs, augment: with a checkpoint nothing is trained",
        ),
        (
            ["measure", "--data", "data.npz", "--checkpoint", "folder", "--learning-rate", "1", "--momentum", "0"],
            "learning_rate, momentum: with a checkpoint",
        ),
        (["measure", "--data", "data.npz", "--likelihood", "gaussian"], "likelihood: expected it with --model hf:"),
        (["measure", "--data", "data.npz", "--model", "torch:math:prod"], NEEDS_TORCH),
        (["merge", "one.safetensors", "--model", "torch:math:prod"], NEEDS_TORCH),
        (["measure", "--data", "data.npz", "--silo", "-1"], "silo"),
        (["measure", "--data", "data.npz", "--budget", "0"], "budget: got 0"),
        (["measure", "--data", "data.npz", "--budget", "1", "--compression", "authors"], "give one of them"),
        (["measure", "--data", "data.npz", "--samples", "3"], "samples: got 3, expected --kind monte_carlo"),
        (["measure", "--data", "data.npz", "--local", "."], "local: got '.', expected the name of a file"),
        (["init", "--checkpoint", "start.safetensors", "--seed", "3", "--out", "n"], "checkpoint: got it with --start"),
        (["run", "--strategy", "fast", "--out", "r"], "strategy: got 'fast', expected one of sequential"),
        (["sweep", "--file", "a.toml", "--file=b.toml"], "file: got 2 of them"),
        (["merge", "one.safetensors", "--robust", "cap", "--faulty", "1"], "faulty: got 1, which cap does not read"),
        (["measure", "--data", "data.npz", "--stochastic"], "stochastic: needs a budget"),
        (["measure", "--data", "data.npz", "--rule", "otfusion"], "dict has no form in files"),
        (["measure", "--data", "data.npz", "--rule", "pfnm", "--epsilon", "8"], "dict has no form in files"),
        (["measure", "--data", "data.npz", "--rule", "fedfisher-lowrank", "--epsilon", "8"], "for LowRank; allowed"),
        (["measure", "--data", "data.npz", "--epsilon", "0"], "epsilon: got 0"),
        (["measure", "--data", "data.npz", "--epsilon", "8", "--delta", "1"], "delta, rounds: got 1"),
        (["measure", "--data", "data.npz", "--epsilon", "8", "--clip-fisher", "nan"], "clip_fisher: got nan"),
        (["measure", "--data", "data.npz", "--delta", "1e-6", "--rounds", "2"], "delta, rounds: needs epsilon"),
        (["measure", "--data", "data.npz", "--clip-params", "2"], "clip_params: needs epsilon"),
        (["measure", "--data", "data.npz", "--out", "nothing/p"], "no folder nothing"),
        (["measure", "--data", "data.npz", "--checkpoint", "other.safetensors"], "parameters: missing"),
        (["measure", "--data", "data.npz", "--checkpoint", "folder", "--out", "folder"], "no .safetensors file in"),
        (["merge", "folder"], "files: no .safetensors file in folder"),
        (["merge", "nothing"], "nothing: no such file"),
        (["merge", "broken.safetensors"], "broken.safetensors: not a safetensors file"),
        (["merge", "one.safetensors", "one.safetensors"], "one.safetensors: silo: number 0"),
        (["merge", "one.safetensors", "--start", "nothing"], "nothing: no such file"),
        (["merge", "one.safetensors", "--damping", "1"], "damping: fedavg has none"),
        (["merge", "one.safetensors", "--damping", "-1"], "damping: got -1"),
        (["merge", "one.safetensors", "--rule", "fedfisher-diag"], "fisher"),
        (["merge", "one.safetensors", "--max-bytes", "10"], "more than 10 bytes"),
        (["merge", "one.safetensors", "--out", "nothing/g"], "no folder nothing"),
        (["merge", "one.safetensors", "--out", "g.json"], "out: got g.json, expected another ending"),
        (["merge", "one.safetensors", "--out", "one.safetensors"], "which would write over one.safetensors"),
        (["merge", "one.safetensors", "--out", "folder/../start.safetensors"], "write over start.safetensors"),
        (["merge", "foreign.safetensors"], "say --rule evil:rule"),
        (["merge", "slow.safetensors"], "with options, which --rule alone may say"),
        (["measure", "--data", "data.npz", "--rule", "fedfisher-diag,a=1"], "got the option 'a'"),
        (["measure", "--data", "data.npz", "--checkpoint", "start.safetensors", "--local", "mine"], "local: with a"),
        (["evaluate", "one.safetensors", "--data", "data.npz"], "not a model file"),
        (["evaluate", "own.safetensors", "--data", "data.npz"], "say --model os:mkdir"),
        (["evaluate", "start.safetensors", "--data", "wide.npz"], "the model cannot take"),
        (["inspect", "broken.safetensors"], "broken.safetensors: not a safetensors"),
        (["inspect", "other.safetensors"], "no header"),
        (["example", "--epochs", "0"], "epochs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line(arguments, words, small, monkeypatch, capsys):
    monkeypatch.chdir(small)
    before = {path.name: path.stat().st_mtime_ns for path in small.iterdir()}
    with pytest.raises(SystemExit) as stop:
        command(*arguments)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fedfisher: ") and words in lines[0]
    assert {path.name: path.stat().st_mtime_ns for path in small.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "arrays"), [("fedavg", 0), ("fedfisher-kfac", 6)])
def test_a_private_payload_is_clipped_noisy_and_says_so(rule, arrays, small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = model_file.read(small / "start.safetensors")
    trained = jax.tree.map(lambda leaf: leaf + 0.1, start.params)
    for folder in ("trained", "data"):
        (tmp_path / folder).mkdir()
    for silo in "ab":  # who are one but for the noise
        model_file.write(f"trained/{silo}.safetensors", start.kind, trained, "test")
        shutil.copy(small / "data.npz", f"data/{silo}.npz")
    here = ["--data", "data", "--start", small / "start.safetensors", "--checkpoint", "trained", "--out", "sent"]
    how = ["--rule", rule, "--epsilon", 8, "--delta", 1e-4, "--clip-params", 0.5, "--clip-fisher", 1e-6]
    command("measure", *here, *how)
    moves = []
    for silo in "ab":
        sent, header = payload.read(f"sent/{silo}.safetensors", start.params)
        pairs = zip(jax.tree.leaves(sent.params), jax.tree.leaves(start.params), strict=True)
        moves.append(np.concatenate([np.ravel(np.asarray(ours, float) - np.asarray(theirs)) for ours, theirs in pairs]))
    said = header.about.privacy
    assert said["epsilon"] == pytest.approx(8, rel=0.01) and (said["delta"], said["clip_params"]) == (1e-4, 0.5)
    std = 2 * np.sqrt(1 + arrays) * said["noise_multiplier"] * 0.5  # two releases: the noise's alone, not the move's
    assert np.std(moves[0] - moves[1]) == pytest.approx(np.sqrt(2) * std, rel=0.1)
    size = moves[0].size
    assert np.abs(np.mean(moves) - 0.5 / np.sqrt(size)) < 5 * std / np.sqrt(2 * size)  # the move, clipped
    shown = " ".join(capsys.readouterr().out.split())
    assert f"parameters moved by {0.1 * np.sqrt(size):.3g}, clipped to 0.5" in shown
    assert f"{arrays} of {arrays} Fisher arrays clipped to 1e-06" in shown
    command("merge", "sent", "--start", small / "start.safetensors")
    report = json.loads((tmp_path / "global.json").read_text())
    assert [one["privacy"] for one in report["contributors"]] == [said, said]


def test_the_merged_model_calls_its_classes_as_the_start_does(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = model_file.read(small / "start.safetensors")
    model_file.write("named", start.kind, start.params, "us", None, ("benign", "malign"))
    said = payload.About("fedavg", "categorical", payload.fingerprint(start.params))
    payload.write("one", ff.Payload(jnp.asarray(4.0), start.params), said)
    command("merge", "one", "--start", "named")
    assert model_file.read("global.safetensors").classes == ("benign", "malign")


def test_names_are_shown_as_they_are(small, tmp_path, monkeypatch, capsys):
    """Markup is none, and what moves a terminal's cursor does not reach it: a model's header may say anything."""
    monkeypatch.chdir(tmp_path)
    start = model_file.read(small / "start.safetensors")
    said = payload.About("fedavg", "categorical", payload.fingerprint(start.params), name="[/x][b]")
    payload.write("one", ff.Payload(jnp.asarray(4.0), start.params), said)
    command("merge", "one", "--start", small / "start.safetensors")
    assert "[/x][b]" in capsys.readouterr().out
    command("inspect", "one")
    assert "[/x][b]" in capsys.readouterr().out
    model_file.write("model", start.kind, start.params, "[/x]\x1b]0;owned")
    command("inspect", "model")
    shown = capsys.readouterr().out
    assert "[/x]\\x1b]0;owned" in shown and "\x1b" not in shown


def test_a_silo_keeps_its_own_model(small, tmp_path):
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("mine", "sent", "merged")}
    how = ("--start", small / "start.safetensors", "--rule", "fedfisher-diag,damping=1", "--epochs", "1")
    command("measure", "--data", small / "data.npz", *how, "--local", paths["mine"], "--out", paths["sent"])
    own = model_file.read(paths["mine"])
    sent, header = payload.read(paths["sent"], model_file.read(small / "start.safetensors").params)
    assert header.about.rule == "fedfisher-diag"
    jax.tree.map(np.testing.assert_array_equal, own.params, sent.params)
    start = ("--start", small / "start.safetensors")
    command("merge", paths["sent"], *start, "--rule", "fedfisher-diag,iterations=2", "--out", paths["merged"])
    for ours, theirs in zip(*map(jax.tree.leaves, (model_file.read(paths["merged"]).params, own.params)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_one_silo_is_its_own_merge(small, tmp_path):
    command("merge", small / "one.safetensors", "--start", small / "start.safetensors", "--out", tmp_path / "g")
    for ours, theirs in zip(
        jax.tree.leaves(model_file.read(tmp_path / "g").params),
        jax.tree.leaves(model_file.read(small / "start.safetensors").params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--budget", "0.01"), "budget: got 0.01, expected at least"),
        (("--rule", "fedfisher-lowrank", "--compression", "authors"), "the authors' scheme has no low_rank Fisher"),
    ],
)
def test_what_cannot_be_written_is_refused_before_training(flags, words, small, monkeypatch, capsys):
    monkeypatch.chdir(small)
    monkeypatch.setattr(_measure, "train_and_measure", lambda *a, **k: pytest.fail("it was trained"))
    with pytest.raises(SystemExit) as stop:
        command("measure", "--data", "data.npz", "--out", "p.safetensors", *flags)
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_model_is_looked_at_as_a_payload_is(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(small)
    command("inspect", "start.safetensors", "--start", "start.safetensors")
    shown = " ".join(capsys.readouterr().out.split())
    assert "checked" in shown and "from the start" in shown
    header, arrays = container.unpack((small / "start.safetensors").read_bytes(), payload.Limits(), "start")
    first = next(iter(arrays))
    broken = tmp_path / "nan.safetensors"
    container.write_bytes(broken, container.pack(header, arrays | {first: np.full_like(arrays[first], np.nan)}))
    with pytest.raises(SystemExit):
        command("inspect", broken)
    assert "expected finite numbers" in capsys.readouterr().err
    other = tmp_path / "other.safetensors"
    command("init", "--input-shape", 9, "--outputs", 3, "--out", other)
    with pytest.raises(SystemExit):
        command("inspect", other, "--start", "start.safetensors")
    assert "got shape (9, 64), expected (3, 64)" in capsys.readouterr().err

"""Silos that only exchange files: the commands as their users run them."""

import dataclasses
import json
import shutil
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import safetensors.numpy

import fedfisher_jax as ff
from fedfisher_jax import payload
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.federate import _one_shot as one_shot
from fedfisher_jax.federate import _simulate as simulate
from fedfisher_jax.models import weights
from fedfisher_jax.payload import plan
from fedfisher_jax.silos import _model_file as model_file

EPOCHS, RULE = "3", "fedfisher-kfac"
NEEDS_TORCH = "math:prod() failed" if find_spec("torchax") else "needs pip install 'fedfisher-jax[torch]'"


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def in_memory(folder, *options):
    """The merged model of `fedfisher run`, and its own record."""
    kept = []

    def keep(rule, payloads, start):
        kept.append(merge(rule, payloads, start))
        return kept[-1]

    merge = simulate.merge_clients
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_shot, "merge_clients", keep)
        command("run", "--epochs", EPOCHS, "--rules", RULE, "--strategy", "threads", *options, "--out", folder)
    return kept[0].params, json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def silos(tmp_path_factory):
    """Five silos' data, the start, and a payload file each, made by a process each."""
    folder, dataset = tmp_path_factory.mktemp("silos"), ff.data.load("digits")
    parts = ff.data.split("dirichlet-client", dataset.train_y, 5, seed=0, alpha=0.1)
    for number, part in enumerate(parts):
        np.savez(folder / f"silo{number}.npz", train_x=dataset.train_x[part], train_y=dataset.train_y[part])
    np.savez(folder / "test.npz", x=dataset.test_x, y=dataset.test_y)
    command("init", "--data", "digits", "--out", folder / "start.safetensors")
    for number in range(len(parts)):
        call = ["measure", "--epochs", EPOCHS, "--silo", str(number), "--rule", RULE]
        call += ["--data", f"silo{number}.npz", "--out", f"payload{number}.safetensors"]
        silo = processes.start(processes.command, folder, call)
        silo.join(timeout=300)
        assert silo.exitcode == 0
    return folder


def files_of(silos):
    return sorted(silos.glob("payload?.safetensors"))


def start_of(silos):
    return silos / "start.safetensors"


@pytest.mark.slow
def test_five_processes_and_a_merge_equal_the_run_in_memory_bit_for_bit(silos, tmp_path, capsys):
    expected, record = in_memory(tmp_path / "run")
    command("merge", *files_of(silos)[::-1], "--start", start_of(silos), "--out", tmp_path / "global.safetensors")
    merged = model_file.read(tmp_path / "global.safetensors")
    assert jax.tree.structure(merged.params) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(merged.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))

    report = json.loads((tmp_path / "global.json").read_text())
    assert [one["silo"] for one in report["contributors"]] == [0, 1, 2, 3, 4]
    assert [one["examples"] for one in report["contributors"]] == record["clients"]["sizes"]
    assert sum(one["weight"] for one in report["contributors"]) == pytest.approx(1)
    assert [one["bits"] for one in report["contributors"]] == [8 * file.stat().st_size for file in files_of(silos)]
    assert report["diagnostics"] == record["rules"][RULE]["diagnostics"]

    capsys.readouterr()
    command("evaluate", tmp_path / "global.safetensors", "--data", silos / "test.npz")
    assert f"accuracy {record['rules'][RULE]['accuracy']:.4f}" in capsys.readouterr().out


def again(silos, out, number=0, *options):
    """Measure a silo anew, from its own model in the payload instead of training."""
    sent, _ = payload.read(files_of(silos)[number])
    model_file.write(out.parent / "trained.safetensors", model_file.read(start_of(silos)).kind, sent.params, "test")
    mine = ["--data", silos / f"silo{number}.npz", "--silo", number, "--start", start_of(silos), "--out", out]
    command("measure", *mine, "--checkpoint", out.parent / "trained.safetensors", *options)
    return payload.read(out)


@pytest.mark.slow
def test_a_trained_model_is_measured_only_and_compressed_to_the_budget(silos, tmp_path, capsys):
    plain, _ = payload.read(files_of(silos)[1])
    sent, header = again(silos, tmp_path / "again.safetensors", 1)
    for ours, theirs in zip(jax.tree.leaves(sent), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    size = sum(leaf.size for leaf in header.leaves)
    small, header = again(silos, tmp_path / "small.safetensors", 1, "--budget", "1.0", "--name", "Berlin")
    assert (tmp_path / "small.safetensors").stat().st_size * 8 == header.bits <= 32 * size
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain.params))
    levels = 2 ** next(codec.bits for codec in header.plan.values() if isinstance(codec, payload.Uniform)) - 1
    for ours, theirs in zip(jax.tree.leaves(small.params), jax.tree.leaves(plain.params), strict=True):
        assert jnp.abs(ours - theirs).max() <= 0.5001 * largest / levels  # the stated error

    files = [path for path in files_of(silos) if "1" not in path.name] + [tmp_path / "small.safetensors"]
    command("merge", *files, "--start", start_of(silos), "--out", tmp_path / "global.safetensors", "--damping", "0.1")
    assert "Berlin" in capsys.readouterr().out
    command("inspect", tmp_path / "small.safetensors", "--start", start_of(silos))
    shown = capsys.readouterr().out
    assert "Berlin" in shown and "budget 1" in shown and "kronecker" in shown
    command("inspect", tmp_path / "global.safetensors")
    assert "merge of 5 payloads" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "budget"), [("fedavg", 0.5), (RULE, 1.0)])
def test_the_merge_of_compressed_files_is_near_that_of_the_files_as_they_are(rule, budget, silos, tmp_path):
    """FedAvg within half a step of the numbers' grid, which is a bound; K-FAC within what docs/silos.md states."""
    merged, steps = {}, []
    for name in ("plain", "small"):
        for number, path in enumerate(files_of(silos)):
            sent, header = payload.read(path)
            about = dataclasses.replace(header.about, rule=rule)
            sent = sent if rule == RULE else sent._replace(statistics=None)
            chosen = plan.fit(sent, about, budget) if name == "small" else {}
            payload.write(tmp_path / f"{name}{number}", sent, about, chosen)
            for leaf, value in zip(header.leaves, jax.tree.leaves(sent.params), strict=True):
                if name == "small":
                    levels = 2 ** chosen[f"params/{leaf.path}"].bits - 1
                    steps.append(float(jnp.abs(value).max()) / levels)
        out = tmp_path / f"{name}.safetensors"
        command("merge", *tmp_path.glob(f"{name}?"), "--start", start_of(silos), "--out", out)
        merged[name] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model_file.read(out).params)])
    start = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model_file.read(start_of(silos)).params)])
    gap = merged["small"] - merged["plain"]
    assert 0 < np.abs(gap).max()
    if rule == "fedavg":
        assert np.abs(gap).max() <= 0.5001 * max(steps)
    else:
        assert np.linalg.norm(gap) <= 0.01 * np.linalg.norm(merged["plain"] - start)


OWN = """
import jax, jax.numpy as jnp

def net(shape, outputs):
    def init(key):
        keys = jax.random.split(key)
        return [{"w": jax.random.normal(keys[0], (shape[0], 4))}, {"w": jax.random.normal(keys[1], (4, outputs))}]

    def apply(params, x):
        return jnp.tanh(x @ params[0]["w"]) @ params[1]["w"]

    return init, apply
"""


@pytest.mark.slow
def test_a_folder_of_checkpoints_of_a_network_of_ones_own(tmp_path, monkeypatch):
    """Three fine-tuned models with PyTorch-like names and small data sets of a regression, merged into one."""
    (tmp_path / "own_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "data").mkdir()
    draw = np.random.default_rng(0)
    like = ["--model", "own_net:net"]
    command("init", *like, "--input-shape", 6, "--outputs", 2, "--likelihood", "gaussian")
    for name in ("b", "a", "c"):
        state = {"0.w": draw.normal(size=(6, 4)), "1.w": draw.normal(size=(4, 2))}
        safetensors.numpy.save_file(
            {key: value.astype(np.float32) for key, value in state.items()}, f"checkpoints/{name}.safetensors"
        )
        np.savez(f"data/{name}.npz", x=draw.normal(size=(20, 6)), y=draw.normal(size=(20, 2)))
    folders = ["--checkpoint", "checkpoints", "--data", "data", "--out", "payloads"]
    command("measure", *folders, "--rule", "fedfisher-diag", *like)
    found = payload.read_all(
        sorted((tmp_path / "payloads").iterdir()), model_file.read("start.safetensors", *like[1:]).params
    )
    assert [(header.about.silo, header.about.name) for _, header in found] == [(0, ""), (1, ""), (2, "")]
    first = safetensors.numpy.load_file("checkpoints/a.safetensors")
    np.testing.assert_array_equal(found[0][0].params[1]["w"], first["1.w"])
    command("merge", "payloads", "--rule", "fisher-merge", *like)
    merged = safetensors.numpy.load_file("global.safetensors")["0/w"]
    fishers = np.stack([np.asarray(sent.statistics.values[0]["w"], float) for sent, _ in found])
    models = np.stack([np.asarray(sent.params[0]["w"], float) for sent, _ in found])
    np.testing.assert_allclose(merged, (fishers * models).sum(0) / fishers.sum(0), rtol=1e-4)
    with pytest.raises(SystemExit):
        command("evaluate", "global.safetensors", "--data", "data/a.npz")  # files name code, users run it
    command("evaluate", "global.safetensors", "--data", "data/a.npz", *like)


def test_a_checkpoint_of_pytorch(tmp_path):
    network = ff.models.build("mlp", (8, 8, 1), 10)
    params = network.init(jax.random.key(3))
    weights.write(tmp_path / "torch.safetensors", params)
    command("init", "--data", "digits", "--checkpoint", tmp_path / "torch.safetensors", "--out", tmp_path / "start")
    got = model_file.read(tmp_path / "start").params
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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

"""Silos agree on one scaling of their inputs by sums; and words where a model learned nothing."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import fedfisher_jax as ff
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.data import Sums, describe, scaling_of
from fedfisher_jax.payload import PayloadError
from fedfisher_jax.silos import _model_file as model_file
from fedfisher_jax.silos import _sums_file as sums_file


def command(*words):
    cli.main([str(word) for word in words])


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def tables():
    """Two silos' tables whose columns differ by a million, and one of everybody."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (rng.normal(size=(60, 4)) + y[:, None] + [0, 3, 0, 5]) * [1e3, 1e-3, 1, 50]
    return (x[:20], y[:20]), (x[20:], y[20:]), (x, y)


def test_sums_of_silos_are_those_of_everybody(tables):
    (a, _), (b, _), (x, _) = tables
    found = scaling_of(Sums(*map(np.add, describe(a), describe(b))))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, x.std(0), rtol=1e-9)


def test_sums_pass_through_a_secure_sum(tables):
    """A plain tree of counts, sums and squares: the server learns the scaling and no silo's own."""
    pytest.importorskip("cryptography")
    from fedfisher_jax.privacy import _secure_merge

    (a, _), (b, _), (x, _) = tables
    trees = [describe(part) for part in (a, b[:20], b[20:])]
    total = _secure_merge.total(trees, threshold=2)
    found = scaling_of(Sums(*map(np.asarray, total)))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, x.std(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        (Sums(np.asarray(0.0), np.zeros(2), np.zeros(2)), "at least one example"),
        (Sums(np.asarray(2.0), np.array([4.0, 1.0]), np.array([1.0, 1.0])), "column 0 has a mean square below"),
        (Sums(np.asarray(2.0), np.zeros(2), np.array([np.nan, 1.0])), "finite numbers"),
        (Sums(np.asarray(2.0), np.zeros(2), np.ones(3)), "shapes"),
    ],
)
def test_sums_that_no_numbers_have(sums, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        scaling_of(sums)
    sums_file.write(tmp_path / "s", sums)
    with pytest.raises(PayloadError, match=words):
        sums_file.read(tmp_path / "s")


@pytest.fixture(scope="module")
def silos(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for name, (x, y) in zip("ab", tables[:2], strict=True):
        np.savez(folder / f"{name}.npz", x=x, y=y)
    np.savez(folder / "narrow.npz", x=np.ones((4, 3)), y=np.array([0, 1, 1, 0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in "ab":
            command("describe", "--data", f"{name}.npz", "--out", f"{name}.sums")
        command("describe", "--data", "narrow.npz", "--out", "narrow.sums")
        shape = "--input-shape", 4, "--outputs", 2
        command("init", *shape, "--standardise", "a.sums", "b.sums")
        command("init", *shape, "--out", "raw.safetensors")
    return folder


@pytest.mark.slow
def test_the_start_carries_the_scaling_through_measure_merge_and_evaluate(tables, silos, monkeypatch, capsys):
    """Tables as they are give the model that tables scaled by hand give."""
    monkeypatch.chdir(silos)
    x, _ = tables[2]
    assert model_file.read("start.safetensors").scaling.mean == pytest.approx(x.mean(0), rel=1e-12)
    for number, name in enumerate("ab"):
        command("measure", "--data", f"{name}.npz", "--silo", number, "--epochs", 3, "--out", f"{name}.safetensors")
        raw, y = tables[number]
        np.savez(f"hand_{name}.npz", x=((raw - x.mean(0)) / x.std(0)).astype(np.float32), y=y)
        mine = "--data", f"hand_{name}.npz", "--silo", number, "--epochs", 3, "--start", "raw.safetensors"
        command("measure", *mine, "--out", f"hand_{name}.safetensors")
    command("merge", "a.safetensors", "b.safetensors")
    hand = "hand_a.safetensors", "hand_b.safetensors", "--start", "raw.safetensors"
    command("merge", *hand, "--out", "hand.safetensors")
    merged = model_file.read("global.safetensors")
    for ours, theirs in zip(
        jax.tree.leaves(merged.params), jax.tree.leaves(model_file.read("hand.safetensors").params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    capsys.readouterr()
    command("evaluate", "global.safetensors", "--data", "b.npz")
    shown = capsys.readouterr().out
    command("evaluate", "hand.safetensors", "--data", "hand_b.npz")
    assert shown.split("examples, ")[1] == capsys.readouterr().out.split("examples, ")[1]
    refusal = refused(capsys, "merge", "a.safetensors", "--start", "raw.safetensors", "--out", "x.safetensors")
    assert "made from another starting model" in refusal  # the same parameters, which see other numbers
    command("inspect", "a.safetensors", "--start", "start.safetensors")
    command("inspect", "global.safetensors")
    assert "scaling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("measure", "--data", "a.npz", "--start", "raw.safetensors"), "inputs far from one: column 0 has a root mean"),
        (("init", "--standardise", "a.sums", "narrow.sums", "--input-shape", "4", "--outputs", "2"), "narrow.sums: 3"),
        (("init", "--standardise", "narrow.sums", "--input-shape", "4", "--outputs", "2"), "scaling: expected mean"),
        (("init", "--standardise", "raw.safetensors", "--input-shape", "4", "--outputs", "2"), "expected sums of inp"),
        (("measure", "--data", "narrow.npz"), "got 3 columns, expected 4"),
        (("measure", "--data", "digits"), "normalised already"),
        (("describe", "--data", "digits"), "normalised already"),
        (("describe", "--data", "a.npz", "--out", "a.npz"), "write over a.npz"),
    ],
)
def test_refusals(words, said, silos, monkeypatch, capsys):
    monkeypatch.chdir(silos)
    out = () if "--out" in words else ("--out", "refused.safetensors")
    assert said in refused(capsys, *words, *out)
    assert not (silos / "refused.safetensors").exists()


def test_features_as_they_are_are_trained_on_only_if_asked_for_and_the_result_is_called_what_it_is(
    silos, monkeypatch, capsys
):
    monkeypatch.chdir(silos)
    raw = "--data", "a.npz", "--start", "raw.safetensors", "--out", "bad.safetensors", "--epochs", 2
    command("measure", *raw, "--unscaled")
    said = capsys.readouterr().err
    assert "far from one: column 0" in said and "worse than a constant guess" in said
    command("evaluate", "raw.safetensors", "--data", "a.npz")
    assert "worse than a constant guess" in capsys.readouterr().err
    command("measure", "--data", "a.npz", "--epochs", 30, "--out", "good.safetensors")
    said = capsys.readouterr()
    assert "guess" not in said.err and "before, loss" in said.out and "after" in said.out


def test_a_start_from_data_scales_by_them_unless_told_otherwise(silos, tables, monkeypatch):
    monkeypatch.chdir(silos)
    command("init", "--data", "a.npz", "--out", "by_a.safetensors")
    assert model_file.read("by_a.safetensors").scaling.std == pytest.approx(tables[0][0].std(0), rel=1e-9)
    command("init", "--data", "a.npz", "--inputs", "as-is", "--out", "plain.safetensors")
    assert model_file.read("plain.safetensors").scaling is None
    command("init", "--data", "digits", "--out", "digits.safetensors")
    assert model_file.read("digits.safetensors").scaling is None  # named sets come normalised


def test_uint8_images_without_a_channel_axis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (30, 6, 5)).astype(np.uint8)
    np.savez("pictures.npz", x=x, y=np.arange(30) % 3)
    command("init", "--data", "pictures.npz")
    start = model_file.read("start.safetensors")
    assert start.kind.input_shape == (6, 5, 1) and start.scaling.mean == pytest.approx([x.mean()])
    command("measure", "--data", "pictures.npz", "--epochs", 1, "--rule", "fedavg")
    command("merge", "payload.safetensors")
    command("evaluate", "global.safetensors", "--data", "pictures.npz")


def test_labels_with_gaps_are_no_outputs_unless_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("ids.npz", x=np.random.default_rng(0).normal(size=(9, 3)), y=np.array([7, 1500, 1999] * 3))
    assert "got labels 7, 1500, 1999, 3 classes of 2000" in refused(capsys, "init", "--data", "ids.npz")
    command("init", "--data", "ids.npz", "--outputs", 2000)
    with pytest.raises(ValueError, match="labels: got numbers from 1 to 3, expected 0 to 2"):
        ff.data.label_counts(np.array([1, 2, 3]), [np.array([0]), np.array([1, 2])], 3)


@pytest.mark.slow
def test_run_says_what_a_person_should_know(tmp_path, capsys):
    """Pixels as they are, labels with gaps, clients that learn nothing, solvers that stop early: all in words."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = (100 * rng.normal(size=(90, 4, 4)) + 60 * y[:, None, None]).clip(0, 255).astype(np.uint8)
    ids = np.array([7, 1500, 1999])[y]
    np.savez(tmp_path / "d.npz", train_x=x[:60], train_y=ids[:60], test_x=x[60:], test_y=ids[60:])
    how = "--clients", 2, "--partition", "iid", "--epochs", 40
    given = "run", "--dataset", tmp_path / "d.npz", *how
    command(*given, "--out", tmp_path / "good", "--rules", "fedavg")
    good = json.loads((tmp_path / "good" / "result.json").read_text())
    assert good["classes"] == [7, 1500, 1999] and good["words"] == [
        "labels with gaps: 7, 1500, 1999 are classes 0 to 2 (result.json has them)"
    ]
    assert good["inputs"]["mean"] == pytest.approx([x[:60].mean()])
    own = good["clients"]["own"]
    assert len(own["before"]["loss"]) == 2 and np.all(np.less(own["after"]["loss"], own["before"]["loss"]))
    command(
        *given, "--inputs", "as-is", "--learning-rate", 1e-9, "--out", tmp_path / "bad", "--rules", "fedfisher-kfac"
    )
    bad = json.loads((tmp_path / "bad" / "result.json").read_text())
    said = " ".join(bad["words"])
    assert bad["inputs"] is None and "inputs far from one" in said and "constant guess" in said
    shown = " ".join(capsys.readouterr().err.split())
    assert "note: inputs far" in shown and "constant guess" in shown


def test_the_best_constant_is_found_by_trying():
    rng = np.random.default_rng(0)
    for likelihood, y, outputs in (
        (ff.categorical(), rng.integers(0, 3, 50), rng.normal(size=(4000, 3))),
        (ff.bernoulli(), rng.integers(0, 2, (50, 2)), rng.normal(size=(4000, 2))),
        (ff.gaussian(2.0), rng.normal(size=(50, 2)) + 1, rng.normal(size=(4000, 2)) + 1),
    ):
        tried = jax.vmap(lambda o, y=y, nll=likelihood.nll: jax.vmap(lambda t: nll(o, t))(y).mean())(outputs)
        best = ff.federate.best_constant(likelihood, y).loss
        assert best <= tried.min() < best + 0.02


def test_checkpoints_as_trainers_leave_them(tmp_path, monkeypatch, capsys):
    """DataParallel's prefix, batch norm's counters, shards: measured as the plain checkpoint is."""
    from fedfisher_jax import payload
    from fedfisher_jax.models import torch_layout

    monkeypatch.chdir(tmp_path)
    command("init", "--input-shape", 6, "--outputs", 3)
    start = model_file.read("start.safetensors").params
    state = {name: np.ascontiguousarray(value) for name, value in torch_layout.to_torch(start).items()}
    rng = np.random.default_rng(0)
    np.savez("mine.npz", x=rng.normal(size=(20, 6)), y=rng.integers(0, 3, 20))
    cases = {
        "plain": state,
        "wrapped": {f"module.{name}": value for name, value in state.items()},
        "counted": state | {"bn.num_batches_tracked": np.zeros((), np.int64)},
    }
    for name, entries in cases.items():
        safetensors.numpy.save_file(entries, f"{name}.safetensors")
    (tmp_path / "shards").mkdir()
    for number, part in enumerate(np.array_split(sorted(state), 2), 1):
        file = f"shards/model-0000{number}-of-00002.safetensors"
        safetensors.numpy.save_file({name: state[name] for name in part}, file)
    for checkpoint in (*(f"{name}.safetensors" for name in cases), "shards"):
        command("measure", "--data", "mine.npz", "--checkpoint", checkpoint, "--rule", "fedavg", "--out", "p")
        sent, _ = payload.read("p", start)
        for ours, theirs in zip(jax.tree.leaves(sent.params), jax.tree.leaves(start), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    rows = ["a,b,c,d,e,f,label", *(",".join(map(str, [*row, n % 3])) for n, row in enumerate(rng.normal(size=(9, 6))))]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    command("measure", "--data", "mine.csv", "--checkpoint", "shards", "--rule", "fedavg", "--out", "p")
    (tmp_path / "shards" / "model-00001-of-00002.safetensors").unlink()
    line = refused(capsys, "measure", "--data", "mine.npz", "--checkpoint", "shards", "--rule", "fedavg", "--out", "q")
    assert "shard 1 of 2 of model is missing" in line

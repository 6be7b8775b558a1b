"""Silos that hide single examples: `fedfisher measure`, `inspect` and `merge` of noisy heads."""

import json

import numpy as np
import pytest

from fedfisher_jax import payload
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.privacy import example_noise
from fedfisher_jax.silos import _model_file as model_file


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def test_silos_measure_with_noise_and_a_merge_knows_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 6)).astype(np.float32)
    y = (x @ random.normal(size=(6, 3))).argmax(1)
    start = tmp_path / "start.safetensors"
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3, "--out", start)
    sent = []
    for number, rows in enumerate(np.array_split(np.arange(600), 2)):
        np.savez(tmp_path / "silo.npz", train_x=x[rows], train_y=y[rows])
        sent.append(tmp_path / f"{number}.safetensors")
        how = ["--rule", "analytic", "--epsilon", 50, "--unit", "example", "--clip-features", 2]
        mine = ["--data", tmp_path / "silo.npz", "--silo", number, "--start", start]
        command("measure", *mine, *how, "--out", sent[-1])
    one, header = payload.read(sent[0], model_file.read(start).params)
    said = header.about.privacy
    assert said["unit"] == "one example, replaced by another" and said["trust"] == "local" and said["epsilon"] == 50
    promised = example_noise.promise(50.0, 1e-5, clip_features=2.0)
    wanted = np.asarray(example_noise.deviations(promised)) ** 2
    np.testing.assert_allclose(np.asarray(one.statistics.variances) * 300, wanted, rtol=1e-5)
    command("inspect", sent[0], "--start", start)
    shown = capsys.readouterr().out
    for words in ("noisy-moments", "privacy epsilon", "one example, replaced by another", "fisher/variances"):
        assert words in shown
    command("merge", *sent, "--start", start, "--out", tmp_path / "g.safetensors")
    report = json.loads((tmp_path / "g.json").read_text())
    assert report["contributors"][1]["privacy"] == said and report["diagnostics"]["ridge"] > 0
    model = model_file.read(tmp_path / "g.safetensors")
    assert np.mean(np.argmax(model.network.apply(model.params, x), 1) == y) > 0.6
    with pytest.raises(SystemExit):
        command("measure", *mine, *how, "--clip-params", 2)
    assert "clip_params: of examples the features are clipped" in capsys.readouterr().err

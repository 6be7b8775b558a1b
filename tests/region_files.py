"""Payload files of silos, and the commands on them, for tests of regions and of leaving them."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff
from fedfisher_jax import payload
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.merge import catalogue
from fedfisher_jax.silos import _model_file as model_file

RULES = {"fedavg": None, "fedfisher-diag": None, "fisher-merge": None, "analytic": None, "fedfisher-kfac": "8 bits"}
SILOS = 7


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Payload files of seven silos for every rule, of models that differ, measured on their data."""
    here = tmp_path_factory.mktemp("regions")
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3, "--out", here / "start.safetensors")
    start = model_file.read(here / "start.safetensors")
    draw = np.random.default_rng(0)
    for name in RULES:
        (here / name).mkdir()
        rule = catalogue.named_rule(name, start.network.apply, ff.categorical())
        measure = jax.jit(
            lambda model, data, rule=rule: rule.measure(ff.Update(model, start.params), data, jax.random.key(0))
        )
        for number in range(SILOS):
            size = 10 + number
            x, y = draw.normal(size=(size, 6)).astype(np.float32), draw.integers(0, 3, size)
            model = jax.tree.map(
                lambda leaf: leaf + jnp.asarray(0.1 * draw.normal(size=leaf.shape), leaf.dtype), start.params
            )
            sent = measure(model, ff.examples(x, y))
            kind = None if sent.kind is None else sent.kind.name
            said = payload.About(name, "categorical", start.fingerprint, kind, silo=number, name=f"silo {number}")
            chosen = payload.plan.fit(sent, said, 2.0) if RULES[name] else None
            payload.write(here / name / f"{number}.safetensors", sent, said, chosen)
    return here


def files(folder, rule, *numbers):
    return [folder / rule / f"{number}.safetensors" for number in numbers or range(SILOS)]


def merged(folder, paths, out, *more):
    command("merge", *paths, "--start", folder / "start.safetensors", "--out", out, *more)
    params = model_file.read(out).params
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)], json.loads(out.with_suffix(".json").read_text())


def fold(folder, paths, out, *more):
    command("fold", *paths, "--start", folder / "start.safetensors", "--out", out, *more)
    return out


def start_of(folder):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model_file.read(folder / "start.safetensors").params)]


def equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(words, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        command(*arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err

"""Moments in files: payloads without parameters, what their headers may not claim, budgets, and the silos' commands."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import START, about, opened, params, psd, resealed, same

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.curvature import Moments
from fedfisher_jax.payload import PayloadError, leaves, plan
from fedfisher_jax.silos import _model_file as model_file


def moments(seed=0, dtype=jnp.float32):
    cross = jnp.asarray(np.random.default_rng(seed).normal(size=(6, 3)), dtype)
    described = leaves(params())
    return Moments(psd(seed, 6, dtype), cross, cross.sum(0), ((2, 4), (0, 1)), True, ((4,), "float32"), described)


def sent(dtype=jnp.float32):
    return ff.Payload(jnp.asarray(12.0), None, moments(dtype=dtype))


SAID = about("kronecker", rule="analytic", kind=None)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("like", [None, START])
def test_uncompressed_is_bit_for_bit(dtype, like):
    data = files.dumps(sent(dtype), SAID)
    got, header = files.loads(data, like)
    assert same(got, sent(dtype)) and got.params is None and got.statistics == got.statistics
    assert header.leaves == leaves(START) and header.structure == "moments"
    _, arrays = opened(data)
    assert sorted(arrays) == ["fisher/cross", "fisher/second", "fisher/totals"]


def test_a_budget_compresses_it():
    chosen = plan.fit(sent(), SAID, 3000.0)  # of a model of 41 parameters: the header alone is many of these
    got, _ = files.loads(files.dumps(sent(), SAID, chosen), START)
    assert set(chosen) == {"fisher/cross", "fisher/second", "fisher/totals"}
    np.testing.assert_allclose(got.statistics.second, sent().statistics.second, atol=1e-3)
    with pytest.raises(ValueError, match="compression: the authors' scheme has no moments"):
        plan.authors(sent())


ODD = {
    "features": [[], [[9, 1]], [[0, 0]], [[0, True]], [[0]], 3, [[2, 10**9]]],
    "constant": [None, 1],
    "outputs": [0, -1, 2.0, 2**60],
    "example": [[[4]], [[0], "float32"], [[4], "complex64"], [[1] * 40, "float32"], None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD.items() for value in values])
def test_odd_headers_are_refused(key, value):
    def change(header, arrays):
        header["static"][key] = value

    with pytest.raises(PayloadError, match="^payload: "):
        files.loads(resealed(files.dumps(sent(), SAID), change), START)


def test_arrays_that_do_not_belong_are_refused():
    def with_params(header, arrays):
        arrays["params/scale"] = np.zeros(5, np.float32)

    def indefinite(header, arrays):
        arrays["fisher/second"] = -arrays["fisher/second"]

    def wider(header, arrays):
        header["static"]["constant"] = False

    for change, words in ((with_params, "params/scale"), (indefinite, "semi-definite"), (wider, "fisher/")):
        with pytest.raises(PayloadError, match=words):
            files.loads(resealed(files.dumps(sent(), SAID), change), START)


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_silos_files_make_the_head_of_all_data(tmp_path):
    """init, measure, merge: an analytic head, then recalibration of that model; against ridge regression by hand."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 6)).astype(np.float32), random.integers(0, 3, 50)
    for number, rows in enumerate(np.array_split(np.arange(50), [11, 12])):
        np.savez(tmp_path / f"silo{number}.npz", train_x=x[rows], train_y=y[rows])
    start, first, second = (tmp_path / f"{name}.safetensors" for name in ("start", "first", "second"))
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3, "--out", start)
    for rule, begin, out in (("analytic@fc1", start, first), ("recalibrate", first, second)):
        sent = []
        for number in range(3):
            sent.append(tmp_path / f"{out.stem}{number}.safetensors")
            mine = ["--data", tmp_path / f"silo{number}.npz", "--silo", number]
            command("measure", *mine, "--start", begin, "--rule", rule, "--out", sent[-1])
        command("merge", *sent, "--start", begin, "--out", out)
    model = model_file.read(first)
    shift = 1e-4 * np.sum(x.astype(float) ** 2) / 6
    head = np.linalg.solve(x.T @ x + shift * np.eye(6), x.T @ np.eye(3)[y])
    np.testing.assert_allclose(model.network.apply(model.params, x), x @ head, atol=1e-5)
    report = json.loads((tmp_path / "first.json").read_text())
    assert report["contributors"][0]["distance_from_start"] is None and report["examples"] == 50
    again = model_file.read(second)
    kept = [leaf for name in ("fc1", "fc2") for leaf in jax.tree.leaves(again.params[name])]
    before = [leaf for name in ("fc1", "fc2") for leaf in jax.tree.leaves(model.params[name])]
    assert all(np.array_equal(a, b) for a, b in zip(kept, before, strict=True))
    command("inspect", tmp_path / "first0.safetensors", "--start", start)


def test_measuring_at_the_start_has_no_use_for_training(tmp_path, capsys):
    np.savez(tmp_path / "silo.npz", train_x=np.eye(6, dtype=np.float32), train_y=np.arange(6) % 3)
    start = tmp_path / "start.safetensors"
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3, "--out", start)
    call = ["measure", "--data", tmp_path / "silo.npz", "--start", start, "--rule", "analytic", "--out", tmp_path / "p"]
    for more, words in (
        (["--epochs", "3"], "epochs: analytic measures the start itself"),
        (["--epsilon", "3.0"], "no noise is defined for Moments"),
    ):
        with pytest.raises(SystemExit):
            command(*call, *more)
        assert words in capsys.readouterr().err

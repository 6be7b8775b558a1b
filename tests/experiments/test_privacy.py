"""The privacy experiment, at a size of seconds."""

import dataclasses
import importlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import fedfisher_jax as ff

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")
from fedfisher_jax.privacy import dp_training, example_noise, noise  # noqa: E402


@pytest.mark.slow
def test_every_attack_on_every_payload(script, tmp_path):
    flags = ("--quick", "--seeds", "1", "--examples", "200", "--epochs", "2", "--clients", "2", "--attacked", "1")
    flags += ("--sizes", "40", "400", "--rank", "3", "--kinds", "weights", "kronecker", "gram")
    table, summary, lines = script("privacy.attacks", *flags)
    found = {tuple(line["settings"].get(n) for n in ("attack", "kind", "protection")): line["result"] for line in lines}
    exact = found["mean image", "kronecker", "none"]["psnr"]
    assert exact > 100 > found["mean image", "kronecker", "quantised"]["psnr"]
    assert found["mean image", "gram", "none"]["psnr"] > found["mean image", "gram", "sum"]["psnr"]
    assert found["mean image", "kronecker", "dp"]["psnr"] < 25
    assert ("accuracy", "kronecker", "sum") not in found  # stacked payloads have no sum
    assert found["components", "kronecker", "none"]["overlap"] > 0.99 > found["components", "gram", "dp"]["overlap"]
    by_size = [line["result"]["auc"] for line in lines if line["settings"]["attack"] == "leverage by size"]
    assert by_size[0] > 0.95 > by_size[1] > 0.5
    assert summary["mlp-bias"]["membership, AUC"]["Kronecker − weights, paired"]
    assert f"| {exact:.1f} |" in table
    grid = (tmp_path / "out" / "grid_mlp-bias.png").read_bytes()
    assert grid.startswith(b"\x89PNG")
    shown = np.load(tmp_path / "out" / "pictures" / "mlp-bias_model-inversion_weights_none.npz")
    assert shown["images"].shape == (10, 8, 8, 1) and shown["images"].dtype == np.uint8


@pytest.mark.slow
def test_what_sums_tell(script):
    """One client's sums tell its class means and shares exactly, and less of it the more clients are in them."""
    _, summary, lines = script("privacy.sums", "--quick", "--examples", "200", "--attacked", "2")
    found = {(line["settings"]["kind"], line["settings"]["how"]): line["result"] for line in lines}
    head, steps = ([found[kind, how] for how in ("alone", "few", "all")] for kind in ("head", "gradient"))
    assert head[0]["psnr_class_mean"] > 100 > head[2]["psnr_class_mean"] > found["head", "noise"]["psnr_class_mean"]
    assert found["class moments", "alone"]["psnr_class_mean"] > 100
    for told in (head, steps):
        assert told[0]["distance"] < 1e-3 < told[1]["distance"] and told[0]["mean"] > 100 > told[1]["mean"]
        assert told[0]["auc"] > 0.9 > told[2]["auc"]
    assert steps[0]["features"] > 0.999 > steps[2]["features"] and steps[0]["inverted"] > steps[2]["inverted"]
    assert summary["distance"]["head"]["alone"] == head[0]["distance"]


@pytest.mark.slow
def test_what_privacy_costs(script):
    """Noise moves silos farther than training does, and a secure sum changes nothing that can be seen."""
    table, summary, (line,) = script("privacy.costs", "--quick", figure=False)
    for rule, found in line["result"].items():
        assert found["noise 8"] > found["noise 100"] > 3 * found["move"] > 0
        assert f"{found['plain']:.1f}" in table and summary[f"{rule}: 100"] == found["100"]
        assert ("sum" in found) == (rule != "fedfisher-kfac")  # its payloads are stacked
        if "sum" in found:
            assert found["gap"] < 1e-3 and abs(found["sum"] - found["plain"]) < 0.5
    # Noise has no seed, and a model of noise alone guesses now 5 %, now 20.
    plain, private = (np.mean([found[how] for found in line["result"].values()]) for how in ("plain", "8"))
    assert private < plain - 30


@pytest.mark.slow
def test_heads_with_privacy_of_every_example(script):
    """Less privacy is more accurate, so is less noise, and at ε = 8 little is lost."""
    table, summary, lines = script("privacy.heads", "--quick")
    found = {tuple(line["settings"][n] for n in ("how", "trust", "epsilon")): line["result"] for line in lines}
    plain = found["plain", "none", None]["accuracy"]
    assert plain > 0.9 > found["plain", "local, 100 silos", 0.5]["accuracy"]
    assert plain - 0.1 < found["whitened", "distributed", 8.0]["accuracy"]
    assert found["whitened", "distributed", 8.0]["accuracy"] > found["whitened", "distributed", 0.5]["accuracy"]
    mailed, central = (found["plain", trust, 8.0]["accuracy"] for trust in ("by mail, 5 sharers", "distributed"))
    assert abs(mailed - central) < 0.05 and mailed > found["plain", "by mail, 5 sharers", 0.5]["accuracy"]
    assert set(summary["points_lost_digits_usual"]) >= {"whitened, distributed", "plain, local, 5 silos"}
    assert f"{100 * plain:.1f}" in table


@pytest.mark.slow
def test_private_training_over_rounds(script, monkeypatch):
    """Settings are chosen without the test examples; the noise is what dp-accounting says of all rounds together."""
    import dp_accounting as dp
    from dp_accounting import rdp

    rounds = importlib.import_module("experiments.privacy.rounds")
    monkeypatch.setattr(rounds, "HOW", {"rounds": (5, ((10, 3),))})
    flags = "--quick", "--clips", "0.3", "--rates", "0.0001", "0.3", "--passes", "30"
    table, summary, (choice, line) = script("privacy.rounds", *flags, figure=False)
    assert choice["result"]["rate"] == line["settings"]["rate"] == 0.3 and choice["settings"]["tuning"] == [1000]
    assert choice["settings"]["schedules"] == [[30, 1]]
    assert line["result"]["accuracy"] > 0.7 and summary["rounds, epsilon 8"] == line["result"]["accuracy"]
    assert f"| {100 * line['result']['accuracy']:.1f} |" in table
    step = dp.PoissonSampledDpEvent(64 / 200, dp.GaussianDpEvent(rounds.noise_for(8.0, (200,), 4, 1)))
    spent = rdp.RdpAccountant().compose(dp.SelfComposedDpEvent(step, 4 * 4)).get_epsilon(0.9 * 1e-5 / (1 + np.exp(4)))
    assert 3.9 < spent < 4.01  # for an example that is added or removed: half of what is promised of a replaced one


@pytest.mark.slow
def test_heads_after_private_training(script):
    """Training and head keep one promise together, and a head on features of a bad model is better than the model."""
    import dp_accounting as dp
    from dp_accounting import rdp

    recalibrated = importlib.import_module("experiments.privacy.recalibrated")
    table, summary, lines = script("privacy.recalibrated", "--quick", figure=False)
    assert len(lines) == 5 and "| 5 | recalibrated, whitened first |" in table
    for name in recalibrated.HOW:
        less, more, none = (summary[f"5 clients, {name}, {e}"] for e in ("epsilon 0.5", "epsilon 8", "no noise"))
        assert less + 5 < more < none and summary["5 clients, fedavg, epsilon 8"] + 20 < more
    promised = recalibrated.promised_for(2.0, 300, 3)
    step = dp.PoissonSampledDpEvent(64 / 300, dp.GaussianDpEvent(promised.noise_multiplier))
    head = recalibrated.of_sum(promised)
    accountant = rdp.RdpAccountant().compose(dp.SelfComposedDpEvent(step, 3 * 5))
    accountant.compose(dp.GaussianDpEvent(head.noise_multiplier * example_noise.sensitivity()))
    assert 0.95 < accountant.get_epsilon(0.9 * 1e-5 / (1 + np.exp(1))) < 1.01  # half of ε: a replaced example is two
    heads, rows = importlib.import_module("experiments.privacy.heads"), np.ones((40, 3))
    plain = heads.moments_of(rows, np.arange(40) % 4, 4)
    ones = SimpleNamespace(normal=lambda size: np.ones(size))
    noisy, _ = heads.private_sums(rows, np.arange(40) % 4, plain, head, 1, False, ones)
    moved = promised.noise_statistics * np.sqrt(1 / np.asarray(example_noise.SHARES)[1]) * promised.clip_features
    np.testing.assert_allclose(noisy.cross - heads.summed(plain).cross, moved, rtol=1e-5)  # all of it is in the sum


@pytest.mark.slow
def test_merges_with_privacy_of_every_example(script, monkeypatch):
    """Noise on sums is less noise, and that of a head hides one example that is added; rows without a cell say so."""
    merges, silos = (importlib.import_module(f"experiments.privacy.{name}") for name in ("private_merges", "silos"))
    heads = (*merges.HEADS, "analytic head")
    small = {"CELLS": ((0.5, True), (8.0, True)), "MORE_EPSILONS": (8.0,), "RULES": (), "ROWS": ("fedavg", *heads)}
    for name, value in small.items():
        monkeypatch.setattr(merges, name, value)
    monkeypatch.setattr(silos, "DRAWS", ff.merge.Draws(steps=2))
    silos.world.cache_clear()
    table, summary, lines = script("privacy.private_merges", "--quick", "--clients", "2", figure=False)
    silos.world.cache_clear()
    assert len(lines) == 3
    told = {
        name: [summary.get(f"alpha 10, {name}, epsilon {e}") for e in (0.5, 8)] for name in (*heads, *merges.STEPPED)
    }
    assert all(told[name][0] + 5 < told[name][1] for name in heads) and told[heads[0]][0] < told[heads[1]][0]
    (none, sums), *others = (told[name] for name in merges.STEPPED)
    assert none is None and told["analytic head"][1] < sums + 1 and min(one for _, one in others) > 70
    assert f"| pseudo-data | – | {summary['alpha 10, pseudo-data, epsilon 8']:.1f} |" in table
    std = example_noise.deviations(merges.whole(1.0))[0] / merges.whole(1.0).clip_features ** 2
    moved = np.sqrt(example_noise.SHARES[0])  # where all that an example adds moves the mechanism by 1
    assert noise.delta_of(1.0, std * moved) == pytest.approx(1e-5, rel=1e-2)


def test_what_attackers_send():
    """The first of three clients lies; the others' payloads stay as they are."""
    robust = importlib.import_module("experiments.privacy.robust")
    start, own = {"w": jnp.ones(2)}, jnp.asarray([[2.0, 0.0], [3.0, 3.0], [5.0, 1.0]])
    honest = ff.Payload(jnp.asarray([4.0, 5.0, 6.0]), {"w": own}, ff.Diagonal({"w": own**2}))
    flipped = honest._replace(params={"w": -own})
    got = {attack: robust.lies(attack, honest, flipped, start, 1) for attack in robust.ATTACKS}
    wanted = {"label flip": [-2.0, 0.0], "sign flip": [0.0, 2.0], "scaled update": [11.0, -9.0]}
    for attack, first in wanted.items():
        np.testing.assert_allclose(got[attack].params["w"], np.vstack([first, own[1:]]))
    np.testing.assert_allclose(got["enormous Fisher"].statistics.values["w"], own**2 * np.array([[1e6], [1], [1]]))
    np.testing.assert_allclose(got["10^12 examples"].weight, [1e12, 5, 6])
    np.testing.assert_allclose(got["two names"].params["w"], np.vstack([own, own[:1]]))
    assert got["none"] is honest and set(got) == {*wanted, "enormous Fisher", "10^12 examples", "two names", "none"}


@pytest.mark.slow
def test_private_training_keeps_its_promise_and_plain_training_has_none():
    training = importlib.import_module("experiments.privacy.training")
    sizes = [300, 200]
    plain, private = training.training_of("plain", sizes, 2), training.training_of("epsilon 2", sizes, 2)
    assert plain.private is None and dataclasses.replace(private, private=None) == plain
    wanted = dp_training.promise(2.0, 1e-5, [200, 300], batch_size=64, epochs=2, clip_gradients=1.0)
    assert private.private == wanted.private and wanted.noise_multiplier > 1
    found = training.run(0, 5, 10.0, 2, "epsilon 8")
    assert 0 < found["accuracy"] < 1 and found["seconds"] is None and found["noise"] > 0.5


@pytest.mark.slow
def test_what_leaving_takes_away(script):
    """After one exchange the model is that of training again; after two the first exchange is still in it."""
    table, summary, (line,) = script("privacy.leaving", "--quick", "--rules", "fedavg", "--epochs", "10", figure=False)
    for one in line["result"]["silos"]:
        found = one["models"]
        assert one["gap"] == 0 and found["left"]["own"] == found["again"]["own"] and found["with"] != found["left"]
        assert found["left, 2"] != found["again, 2"] and 0 <= found["left"]["auc of both"] <= 1
    own = [summary[f"fedavg, {model}: own"] for model in ("file", "with", "left")]
    assert own[0] > own[1] > own[2] and f"| {own[1]:.1f} |" in table

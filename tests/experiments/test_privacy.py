"""The privacy experiment, at a size of seconds."""

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="secure sums need pip install 'fedfisher-jax[privacy]'")


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
    assert set(summary["points_lost_digits_usual"]) >= {"whitened, distributed", "plain, local, 5 silos"}
    assert f"{100 * plain:.1f}" in table


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

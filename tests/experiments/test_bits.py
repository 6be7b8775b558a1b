import pytest


@pytest.mark.slow
def test_files_keep_their_budgets_and_uncompressed_ones_their_numbers(script):
    table, summary, lines = script("fedfisher.bits", "--quick", "--rules", "fedavg", "fisher-merge")
    points = {
        (line["settings"]["rule"], point["scheme"]): point for line in lines for point in line["result"]["points"]
    }
    budgets = [scheme for _, scheme in points if not isinstance(scheme, str)]
    assert 1.0 in budgets and all(point["bits"] <= scheme for (_, scheme), point in points.items() if scheme in budgets)
    # twice as many numbers, and one header
    assert 1 < 2 * points["fedavg", "none"]["bits"] / points["fisher-merge", "none"]["bits"] < 1.1
    assert points["fisher-merge", "none"]["accuracy"] > points["fedavg", "none"]["accuracy"] + 20
    for (rule, scheme), point in points.items():
        assert f"{point['accuracy']:.2f}" in table
        if scheme in ("none", "authors", 1.0):
            assert summary[f"digits: {rule}: {scheme}"] == pytest.approx(
                {"bits": point["bits"], "accuracy": point["accuracy"]}
            )

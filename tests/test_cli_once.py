"""`fedfisher run` of one shot that is stopped, and goes on to the same files."""

import json
from pathlib import Path

import kill
import numpy as np
import pytest

from fedfisher_jax import _files
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.federate import _simulate

ONCE = "run --epochs 1 --clients 5 --partition iid --rules fedavg fisher-merge pfnm --pooled --strategy sequential"


def run(out, *more):
    cli.main([*ONCE.split(), "--dataset", str(out.parent / "data.npz"), "--out", str(out), *more])


def write_data(path):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(80, 4)).astype(np.float32), np.arange(80) % 3
    np.savez(path, train_x=x[:60], train_y=y[:60], test_x=x[60:], test_y=y[60:])


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--rounds", "2")], ids=["one shot", "rounds"])
def test_it_takes_more_rules(tmp_path, more, capsys):
    """A finished run that is asked for one more rule has, in the end, the files of a run that was asked for both."""
    write_data(tmp_path / "data.npz")
    run(tmp_path / "grown", *more, "--rules", "fisher-merge")
    before = json.loads((tmp_path / "grown" / "result.json").read_text())["rules"]["fisher-merge"]
    for said in (False, True):
        capsys.readouterr()
        run(tmp_path / "grown", *more, "--rules", "fedavg", "fisher-merge")
        assert ("this run is finished" in capsys.readouterr().out) == said
    with pytest.raises(SystemExit):
        run(tmp_path / "grown", *more, "--rules", "fisher-merge")
    assert "holds another run: rules " in capsys.readouterr().err
    after = json.loads((tmp_path / "grown" / "result.json").read_text())
    assert list(after["rules"]) == ["fedavg", "fisher-merge"] and after["complete"]
    assert after["rules"]["fisher-merge"]["accuracy"] == before["accuracy"]
    if not more:
        assert after["rules"]["fisher-merge"] == before  # seconds, too: it was not merged again
    run(tmp_path / "whole", *more, "--rules", "fedavg", "fisher-merge")
    assert kill._files(tmp_path / "grown") == kill._files(tmp_path / "whole")


@pytest.mark.slow
def test_it_goes_on_from_wherever_it_was_stopped(tmp_path, monkeypatch, capsys):
    """Stopped in training, before a rule's model is there, the first one's and another, and when all is found."""
    out = tmp_path / "stopped"
    write_data(tmp_path / "data.npz")
    trained, real, replace = [], _simulate.map_clients, _files.os.replace

    def count(function, shared, clients, **how):
        if isinstance(function, _simulate.TrainClient):
            trained.append(len(clients.number))
        return real(function, shared, clients, **how)

    monkeypatch.setattr(_simulate, "map_clients", count)
    for name, left in [
        ("trained.npz", 2),
        ("fedavg.safetensors", 1),
        ("fisher-merge.safetensors", 1),
        ("records.csv", 1),
    ]:
        seen = []

        def stop(temporary, target, name=name, left=left, seen=seen):
            seen.append(Path(target).name)
            if seen.count(name) == left:
                raise KeyboardInterrupt
            replace(temporary, target)

        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
            patch.setattr(_files.os, "replace", stop)
            run(out)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        if name == "trained.npz":
            assert said == (
                "fedfisher: interrupted: every finished group of clients and rule is kept; "
                "the same command goes on from there"
            )
    run(out)
    assert trained == [1, 1, 1, 1, 1, 1, 1]  # the five, one of whom was lost, and pooled training
    assert not (out / "trained.npz").exists()
    run(tmp_path / "whole")
    assert kill._files(out) == kill._files(tmp_path / "whole")
    told = [json.loads((tmp_path / who / "result.json").read_text())["seconds"] for who in ("whole", "stopped")]
    assert told[0]["train"] > 0 and told[1] == {"train": None}  # some were trained by earlier calls

"""The command, as a user runs it: its files, its refusals."""

import json
import socket
import subprocess
import sys
import time

import devices
import numpy as np
import pytest

from fedfisher_jax.cli import _cli as cli

QUICK = ["run", "--epochs", "2", "--clients", "3", "--alpha", "1.0"]


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    command(*QUICK, "--pooled", "--out", out)
    return json.loads((out / "result.json").read_text()), out


@pytest.mark.slow
def test_result_has_everything(record):
    result, out = record
    assert result["complete"] and result["seed"] == 0
    assert set(result["rules"]) == {"fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac"}
    for rule in result["rules"].values():
        assert {"accuracy", "loss", "bits_up", "seconds", "diagnostics"} <= set(rule)
        assert 0 <= rule["accuracy"] <= 1 and rule["seconds"] > 0
    bits = {name: rule["bits_up"] / result["fedavg_bits"] for name, rule in result["rules"].items()}
    assert bits["fedavg"] == 1 and bits["fisher-merge"] == bits["fedfisher-diag"] == 2 and bits["fedfisher-kfac"] > 2
    assert {"best_local", "ensemble", "ensemble_by_class", "pooled"} <= set(result["references"])
    clients = result["clients"]
    assert len(clients["sizes"]) == len(clients["accuracies"]) == 3
    assert np.sum(clients["label_counts"], axis=1).tolist() == clients["sizes"]
    assert result["references"]["best_local"]["accuracy"] == max(clients["accuracies"])
    assert result["settings"]["epochs"] == 2 and result["versions"]["jax"]
    for name in ("accuracy", "clients"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not list(out.glob(".*"))


def test_same_seed_same_result(record, tmp_path):
    command(*QUICK, "--strategy", "sequential", "--out", tmp_path)
    again = json.loads((tmp_path / "result.json").read_text())
    for name, rule in record[0]["rules"].items():
        assert again["rules"][name]["accuracy"] == pytest.approx(rule["accuracy"], abs=0.004)
    assert again["clients"]["sizes"] == record[0]["clients"]["sizes"]


@pytest.mark.slow
def test_data_seed_alone_decides_the_split(tmp_path):
    sizes = {}
    for seed, data_seed in ((0, 5), (1, 5), (1, 6)):
        again = "--seed", seed, "--data-seed", data_seed, "--out", tmp_path, "--overwrite"
        command(*QUICK, "--rules", "fedavg", *again)
        result = json.loads((tmp_path / "result.json").read_text())
        sizes[seed, data_seed] = result["clients"]["sizes"], result["rules"]["fedavg"]["loss"]
    assert sizes[0, 5][0] == sizes[1, 5][0] != sizes[1, 6][0]
    assert sizes[0, 5][1] != sizes[1, 5][1]


@pytest.mark.slow
def test_a_folder_knows_its_run(record, tmp_path, capsys):
    """The same run says that it is finished, another one is refused by what differs, whatever a file is called."""
    result, out = record
    same = *QUICK, "--pooled"
    before = (out / "result.json").read_bytes()
    command(*same, "--out", out, "--strategy", "sequential")
    assert "this run is finished" in capsys.readouterr().out
    for more, words in ((("--seed", "1"), "seed 0 there, 1 here"), (("--rules", "fedavg"), "rules ")):
        with pytest.raises(SystemExit):
            command(*same, *more, "--out", out)
        said = capsys.readouterr().err
        assert f"holds another run: {words}" in said and "--overwrite" in said
    assert (out / "result.json").read_bytes() == before

    mine = "run", "--epochs", "1", "--clients", "2", "--partition", "iid", "--rules", "fedavg"
    mine += "--out", tmp_path / "own"
    command(*mine, "--dataset", npz(tmp_path / "a.npz"))
    command(*mine, "--dataset", npz(tmp_path / "b.npz"))  # the same arrays
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(*mine, "--dataset", npz(tmp_path / "a.npz", train_y=(np.arange(20) // 2) % 2))
    assert "holds another run: data " in capsys.readouterr().err
    command(*mine, "--dataset", tmp_path / "a.npz", "--overwrite")
    note = tmp_path / "own" / "run.json"
    older = json.loads(note.read_text())
    del older["examples"]  # a setting that came later had its default
    note.write_text(json.dumps(older))
    command(*mine, "--dataset", tmp_path / "a.npz")
    assert "this run is finished" in capsys.readouterr().out
    (tmp_path / "own" / "run.json").unlink()
    with pytest.raises(SystemExit):
        command(*mine, "--dataset", tmp_path / "a.npz")
    assert "holds a run, and not what made it" in capsys.readouterr().err


def test_paper_preset_says_what_it_does(tmp_path):
    command(*QUICK, "--rules", "fedfisher-kfac", "--preset", "paper", "--out", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert "500" in result["preset"] and "labelled" in result["preset"]
    assert result["rules"]["fedfisher-kfac"]["diagnostics"]["iterations"] == 2000


def test_own_rule(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "from fedfisher_jax.merge import MeasureFisher, Merged, Rule\n"
        "def first(apply, likelihood):\n"
        "    take = lambda s, start: Merged({k: {n: v[0] for n, v in d.items()} for k, d in s.params.items()}, {})\n"
        "    return Rule('first', MeasureFisher(apply, likelihood, None), lambda p, start: p, take, 'stack')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command(*QUICK, "--rules", "my_rules:first", "--out", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["rules"]["my_rules:first"]["accuracy"] == pytest.approx(result["clients"]["accuracies"][0], abs=1e-3)


@pytest.mark.slow
def test_rules_that_work_on_the_host_or_bring_their_own_network(tmp_path):
    rules = ("otfusion", "pfnm", "fedbens")
    command(*QUICK, "--rules", *rules, "--out", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert tuple(result["rules"]) == rules
    assert all(rule["accuracy"] > 0.15 for rule in result["rules"].values())  # ten classes
    assert result["rules"]["pfnm"]["diagnostics"]["units_0"] > 64  # wider than the clients'
    assert result["rules"]["fedbens"]["diagnostics"]["modes"] == 2


def npz(path, **changes):
    x, y = np.ones((20, 4), np.float32), np.arange(20) % 2
    np.savez(path, **{"train_x": x, "train_y": y, "test_x": x, "test_y": y, **changes})
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "nothing"], "nothing"),
        (["--dataset", "cifar10", "--data-dir", "/nonexistent"], "cifar10 is not on this machine"),
        (["--model", "nothing"], "name: got 'nothing'"),
        (["--model", "lenet"], "input_shape"),
        (["--rules", "nothing"], "rules: got 'nothing'"),
        (["--rules", "no_such_module:rule"], "cannot import"),
        (["--rules", "fedavg", "fedavg"], "rules: expected different names"),
        (["--alpha", "0"], "alpha"),
        (["--alpha", "nan"], "alpha"),
        (["--clients", "0"], "clients: got 0"),
        (["--clients", "5000"], "5000"),
        (["--epochs", "0"], "epochs: got 0"),
        (["--partition", "nothing"], "partition"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--learning-rate", "1e9"], "NaN or infinity"),
        (["--strategy", "nothing"], "strategy: got 'nothing'"),
        (["--damping", "-1"], "damping"),
        (["--preset", "paper", "--damping", "1"], "damping"),
        (["--seed", "-1"], "seed"),
        (["--out", "/proc/nothing"], "out: cannot write"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(arguments, words, capsys, tmp_path):
    out = [] if "--out" in arguments else ["--out", tmp_path]
    with pytest.raises(SystemExit) as stop:
        command("run", *arguments, *out)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fedfisher: ") and words in last


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_y": np.full(20, -1)}, "label"),
        ({"train_x": np.full((20, 4), np.nan, np.float32)}, "NaN"),
        ({"test_x": np.ones((20, 5), np.float32)}, "shape"),
    ],
)
def test_bad_files_are_one_line(changes, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        command("run", "--dataset", npz(tmp_path / "data.npz", **changes), "--out", tmp_path / "out")
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_list(capsys):
    command("list")
    printed = capsys.readouterr().out
    for name in ("fashion_mnist", "fedfisher-kfac", "otfusion", "pfnm", "dense", "fedbens", "dirichlet-client"):
        assert name in printed


def two_hosts(*flags):
    """The same command on each of two hosts, two devices each; the variables are those that Slurm sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    }
    call = [sys.executable, "-m", "fedfisher_jax.cli", *QUICK, "--distributed", *map(str, flags)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    each = [slurm | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(2)]
    return [subprocess.Popen(call, env=devices.environment(2) | mine, **how) for mine in each]


def one_dies(hosts, when):
    """The second host is killed as soon as something is there; what the first one says."""
    first, second = hosts
    while not when() and first.poll() is None:
        time.sleep(0.05)
    second.kill()
    said = first.communicate(timeout=60)[1].splitlines()
    assert said[-1].startswith("fedfisher: another host of this run is gone")
    second.communicate(timeout=60)  # its process that computed has ended, too
    assert (first.returncode, second.returncode) == (75, -9)
    return said


@pytest.mark.slow
def test_two_hosts_of_a_slurm_step(record, tmp_path):
    """One of them dies, and both begin again where they were."""
    kept = tmp_path / "trained.npz"
    said = one_dies(two_hosts("--out", tmp_path), kept.exists)
    assert "2 hosts, 4 devices: " in " ".join(said)
    hosts = two_hosts("--out", tmp_path)
    outputs = [host.communicate(timeout=600) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    assert outputs[1] == ("", "")
    assert "fedfisher-kfac" in outputs[0][0] and "fedfisher-kfac" not in outputs[1][0]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["cohort"]["strategy"] == "devices" and not kept.exists()
    for name, rule in record[0]["rules"].items():  # two test examples may flip: float32 here, float64 there
        assert result["rules"][name]["accuracy"] == pytest.approx(rule["accuracy"], abs=0.006)


@pytest.mark.slow
def test_two_hosts_go_on_with_the_round_that_one_died_in(tmp_path):
    """Three clients, so that a device has nobody; rounds are those of one process, to the rounding of their sums."""
    flags = "--rounds", 6, "--rules", "fedavg", "--out"
    command(*QUICK, *flags, tmp_path / "alone")
    lines = [tmp_path / who / "rounds" / "rules" / "fedavg" / "rounds.jsonl" for who in ("alone", "hosts")]
    one_dies(two_hosts(*flags, tmp_path / "hosts"), lambda: lines[1].exists() and lines[1].read_text())
    begun = lines[1].read_text().splitlines()
    hosts = two_hosts(*flags, tmp_path / "hosts")
    outputs = [host.communicate(timeout=600) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    found = lines[1].read_text().splitlines()
    assert 0 < len(begun) < 6 and found[: len(begun) - 1] == begun[:-1]  # the last may not have had its checkpoint
    for ours, theirs in zip(map(json.loads, found), map(json.loads, lines[0].read_text().splitlines()), strict=True):
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-3)

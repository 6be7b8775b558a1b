"""Cells of a sweep as processes elsewhere: local ones here, Slurm's and Dask's where they are there."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import kill
import pytest

from fedfisher_jax.cli import _cell, _cluster, _sweep_elsewhere
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.cli._settings import RunSettings

QUICK = ("sweep", "--epochs", "1", "--clients", "2", "--rules", "fedavg", "--seeds", "1", "--strategy", "sequential")
TABLES = ("results.jsonl", "table.md", "table.csv", "table.tex", "figure.png", "figure.pdf")


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """The last line of a command that ends with 2, and all that it printed."""
    with pytest.raises(SystemExit) as stop:
        command(*arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    return printed.err.strip().splitlines()[-1], printed.out + printed.err


@dataclasses.dataclass(frozen=True)
class Quick(_cell.Job):
    """A job that is a line of Python, which needs no library."""

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / _cell.LOG, "ab") as log:
            how = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
            return subprocess.Popen([sys.executable, "-S", "-c", *self.words], **how)


def jobs(folder, *codes):
    return [Quick(str(n), (code,), folder / str(n), folder) for n, code in enumerate(codes)]


def test_local_processes_end_each_with_its_own_code_and_no_more_than_asked_for_run(tmp_path):
    log = tmp_path / "log"
    noted = f"import os, time; f = open({str(log)!r}, 'a'); f.write('+'); f.flush(); time.sleep(.2); f.write('-')"
    engine = _cluster.engine_of("local=2")
    codes = (
        noted,
        noted + "; f.flush(); print('why', flush=True); os._exit(3)",
        noted,
        "import os; os.kill(os.getpid(), 9)",
    )
    found = {job.name: said for job, said in _cluster.run_jobs(engine, jobs(tmp_path, *codes), tmp_path)}
    assert found == {"0": "", "1": "exit code 3", "2": "", "3": "killed by signal 9"}
    running = [log.read_text()[:n].count("+") - log.read_text()[:n].count("-") for n in range(7)]
    assert max(running) == 2
    assert _cell.last_lines(tmp_path / "1", 2) == ["why", "-- ended: exit code 3"]
    states = [_cell.state_of(tmp_path / name, ("fedavg",)) for name in ("1", "3", "4")]
    assert states == ["failed", "failed", "waiting"]
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "result.json").write_text('{"complete": true, "rules": {"fedavg": {}}}')
    asked = (("fedavg",), ("fedavg", "fedfisher-kfac"))
    assert [_cell.state_of(tmp_path / "4", rules) for rules in asked] == ["done", "begun"]
    for damaged in ("[]", "{", '{"complete": true}'):
        (tmp_path / "4" / "result.json").write_text(damaged)
        assert _cell.state_of(tmp_path / "4", ("fedavg",)) == "begun"


def test_local_processes_end_when_the_sweep_does(tmp_path):
    engine, waits = _cluster.engine_of("local"), "import sys; sys.stdin.read(); print('let go')"
    found = _cluster.run_jobs(engine, jobs(tmp_path, "print('first')", *[waits] * 20), tmp_path)
    assert next(found)[0].name == "0"
    found.close()
    begun = [path for path in tmp_path.iterdir() if path.name != "0"]
    assert begun and all(_cell.last_lines(path, 1) == ["let go"] for path in begun)
    assert _cell.state_of(begun[0], ()) == "begun"


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("cloud", "on: got 'cloud', expected local"),
        ("dask", "on: got 'dask', expected local"),
        ("local=", "on: got 'local=', expected local"),
        ("slurm=8", "on: got 'slurm=8', expected local"),
        ("local=none", "on: local: got 'none', expected a whole number"),
        ("local=2,time=3", "on: got the option 'time', expected none with local"),
        ("slurm,nodes=3", "on: got the option 'nodes', expected one of partition, time"),
        ("slurm,time=1h", "on: time: got '1h', expected a whole number"),
    ],
)
def test_engines_that_are_not_there_are_one_line(on, words, tmp_path, capsys):
    assert words in refused(capsys, *QUICK, "--on", on, "--out", tmp_path / "out")[0]
    assert not (tmp_path / "out").exists()


def test_an_engine_whose_package_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"pip install 'fedfisher-jax\[slurm\]'"):
        _cluster.engine_of("slurm,gpus=1")


def test_options_of_slurm_go_to_submitit_by_its_names(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", sys)
    engine = _cluster.engine_of("slurm,partition=gpu,time=60,memory=8,at-once=4")
    expected = {"slurm_partition": "gpu", "timeout_min": 60, "mem_gb": 8, "slurm_array_parallelism": 4}
    assert engine.options == expected


def test_a_relative_folder_is_found_when_its_cells_have_ended(tmp_path, monkeypatch):
    """Cells run in the folder that the sweep was started in, and `--out` counts from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_sweep_elsewhere, "run_jobs", lambda engine, jobs, out: iter([(job, "") for job in jobs]))
    cell = RunSettings(out=Path("runs/cells/seed=0"))
    done, failed = _sweep_elsewhere.run_elsewhere(_cluster.engine_of("local=1"), Path("runs"), [("column", cell)])
    assert done == [] and failed == ["seed=0"]  # it left no result


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_finish(tmp_path, capsys):
    same = (*QUICK, "--learning-rate", "0.05", "1e30")
    command(*QUICK, "--learning-rate", "0.05", "--out", tmp_path / "here")
    capsys.readouterr()
    last, printed = refused(capsys, *same, "--on", "local=2", "--out", tmp_path / "there")
    assert (
        "1 of 2 cells failed: clients=2,epochs=1,learning_rate=1e+30,seed=0; the same command runs them again" in last
    )
    assert "lower the learning rate?" in printed and "-- ended: exit code 2" in printed
    mine, theirs = ((tmp_path / where / "results.jsonl").read_text() for where in ("here", "there"))
    one, other = (json.loads(line) | {"varied": ""} for line in (mine, theirs))
    assert one == other
    command(*same, "--status", "--out", tmp_path / "there")
    printed = capsys.readouterr().out
    assert "2 cells: 1 done, 1 failed, 0 begun (they run, or were lost), 0 waiting" in printed
    assert "learning_rate=1e+30,seed=0 (" in printed and "lower the learning rate?" in printed


# ---- real engines ----

SLURM = pytest.mark.skipif(
    not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
    reason="needs a Slurm that answers (sinfo) and pip install 'fedfisher-jax[slurm]'; docs/scale.md says how",
)
THREE = (*QUICK, "--alpha", "0.1", "0.5", "2")


def two_are_equal(here, there):
    found, wanted = kill._files(there), kill._files(here)
    logs = {name for name in found if name.endswith(_cell.LOG)}
    assert len(logs) == len([name for name in wanted if name.endswith("result.json")])
    found = {name: data for name, data in found.items() if name not in logs and not name.startswith("slurm/")}
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.slow
@SLURM
def test_cells_on_slurm_leave_the_same_files(tmp_path):
    pytest.importorskip("submitit", reason="needs pip install 'fedfisher-jax[slurm]'")
    command(*THREE, "--out", tmp_path / "here")
    command(*THREE, "--on", "slurm,time=10,at-once=2", "--out", tmp_path / "there")
    two_are_equal(tmp_path / "here", tmp_path / "there")


@pytest.mark.slow
def test_cells_of_a_dask_worker_that_is_killed_are_done_by_the_other(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs pip install 'fedfisher-jax[dask]'")
    command(*THREE, "--out", tmp_path / "here")
    there = tmp_path / "there"
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        workers = client.run(os.getpid)

        def murder():
            while not list(there.glob("cells/*/" + _cell.LOG)):
                time.sleep(0.05)
            busy = next(address for address, tasks in client.processing().items() if tasks)
            os.kill(workers[busy], signal.SIGKILL)

        killer = threading.Thread(target=murder, daemon=True)
        killer.start()
        command(*THREE, "--on", f"dask={cluster.scheduler_address}", "--out", there)
        killer.join(timeout=5)
    two_are_equal(tmp_path / "here", there)
    begun = [path.read_text().count("fedfisher run") for path in there.glob("cells/*/" + _cell.LOG)]
    assert sum(begun) > 3  # a cell was begun again

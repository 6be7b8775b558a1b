"""Commands killed at random moments: under a file's name there is what was there before, or all of the new file.

    python tests/kill.py 50
    python tests/kill.py runs 10

`measure` and `merge` in processes of their own, killed (SIGKILL) anywhere between start and end, and a process that
does nothing but write, for kills in the midst of writing.
"""

import collections
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import processes

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.cli import _cli as cli

SIZES = (200_000, 300_000)  # parameters of two payloads that differ in every byte


def contents():
    """Two files' bytes."""
    params = [{"w": jnp.full(size, number + 1.0, jnp.float32)} for number, size in enumerate(SIZES)]
    return [
        files.dumps(ff.Payload(jnp.asarray(1.0), tree), files.About("fedavg", "categorical", files.fingerprint(tree)))
        for tree in params
    ]


def write_for_ever(path, both):
    """Write one and the other in turn under one name."""
    while True:
        for data in both:
            files._container.write_bytes(path, data)


def killed_writers(folder, count, seed=0):
    """Kill `count` writers; returns how often the file held the first and the second content."""
    draw, path, both = np.random.default_rng(seed), Path(folder) / "payload", contents()
    found = collections.Counter()
    files._container.write_bytes(path, both[0])
    for _ in range(count):
        before = path.stat().st_mtime_ns
        writer = processes.start(write_for_ever, path, both)
        while path.stat().st_mtime_ns == before:  # until it has begun
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.05))
        writer.kill()
        writer.join(timeout=60)
        found[both.index(path.read_bytes())] += 1  # raises if it is neither
        files.read(path)
    return found


def silo(folder):
    """A start, data, two payload files and the merge of one; returns the commands to be killed, by the file of each."""
    draw = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=draw.normal(size=(60, 20)).astype(np.float32), y=draw.integers(0, 3, 60))
    os.chdir(folder)
    cli.main(["init", "--data", "data.npz"])
    measure = ["measure", "--data", "data.npz", "--epochs", "2"]
    for number in range(2):
        cli.main([*measure, "--silo", str(number), "--out", f"payload{number}.safetensors"])
    merge = ["merge", "payload0.safetensors", "payload1.safetensors"]
    cli.main(merge[:2])
    return {"again.safetensors": [*measure, "--out", "again.safetensors"], "global.safetensors": merge}


def killed_commands(folder, count, seed=0):
    """Kill `count` commands; returns how often each one's file was then absent, an older one, or complete.

    Where it runs for the first time there is no file before, and then none or the complete one; else there is an older
    file, and then that or the complete one. A merge's report, written after its model, may stay behind it, and its
    SHA-256 tells. No other file changes.
    """
    commands, draw, found = silo(folder), np.random.default_rng(seed), collections.Counter()
    merged = ("global.safetensors", "global.json")
    older = {name: (folder / name).read_bytes() for name in merged}
    complete, seconds = {}, {}
    for name, arguments in commands.items():
        began = time.perf_counter()
        whole = processes.start(processes.command, folder, arguments)
        whole.join()
        seconds[name], complete[name] = time.perf_counter() - began, (folder / name).read_bytes()
    complete["global.json"] = (folder / "global.json").read_bytes()
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in complete}
    older["again.safetensors"] = kept["payload1.safetensors"]
    for number in range(count):
        name, stale = list(commands)[number % 2], number // 2 % 2
        written = merged if name in merged else (name,)
        for one in written:
            (folder / one).unlink(missing_ok=True)
            if stale:
                (folder / one).write_bytes(older[one])
        killed = processes.start(processes.command, folder, commands[name])
        time.sleep(draw.uniform(0, 1.3) * seconds[name])
        killed.kill()
        killed.join(timeout=60)
        now = [outcome(folder / one, older[one] if stale else None, complete[one]) for one in written]
        found[(name, *now)] += 1
        if name in merged:
            require_told(folder, *now)
        for other, data in kept.items():
            assert (folder / other).read_bytes() == data, f"{other} was lost"
    return found


ROUNDS = ("run", "--rounds", "20", "--clients", "4", "--sampled", "2", "--epochs", "1", "--rules", "fedavg", "fedfish")
SWEEP = ("sweep", "--alpha", "0.1", "0.5", "1", "--learning-rate", "0.01", "0.05", "--seeds", "2", "--clients", "3")
ONCE = ("run", "--clients", "4", "--epochs", "1", "--rules", "fedavg", "fisher-merge", "pfnm")
RUNS = {
    "a run of one shot": (*ONCE, "--pooled", "--strategy", "sequential"),
    "a run of 20 rounds": (*ROUNDS, "--strategy", "sequential"),
    "a sweep of 12 cells": (*SWEEP, "--epochs", "1", "--rules", "fedavg", "fisher-merge", "--strategy", "sequential"),
}


def killed_runs(folder, arguments, count, seed=0):
    """Kill a command that goes on where it was stopped, `count` times at random moments; it ends with the same files.

    Where it is finished before its time has come, it begins anew.
    Returns how often it was killed, how often it had then to be finished, and seconds of one that was left alone.
    """
    draw, finished = np.random.default_rng(seed), 0
    whole, killed = folder / "whole", folder / "killed"
    began = time.perf_counter()
    _command(folder, arguments, whole).join()
    seconds = time.perf_counter() - began
    wanted, kills = _files(whole), 0
    assert wanted, "the command failed"
    while kills < count:
        process = _command(folder, arguments, killed)
        process.join(timeout=draw.uniform(0, 1) * seconds)
        if process.exitcode is None:
            process.kill()
            kills += 1
            process.join(timeout=60)
            continue
        assert _files(killed) == wanted, "other files after a kill"
        shutil.rmtree(killed)
        finished += 1
    _command(folder, arguments, killed).join()
    now = _files(killed)
    assert now == wanted, [name for name in wanted if now.get(name) != wanted[name]]
    return {"kills": kills, "finished": finished + 1, "seconds": round(seconds, 1), "files": len(wanted)}


def _command(folder, arguments, out):
    return processes.start(processes.command, folder, [*arguments, "--out", str(out)])


def _files(out):
    """All that a command leaves, but what tells the folder, the time that it took, or is orbax's own."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and "checkpoints/" not in name and not name.startswith(".") and "/." not in name:
            found[name] = path.read_bytes()
            if path.name == "result.json":
                found[name] = json.dumps(_timeless(json.loads(found[name])))
    return found


def _timeless(value):
    if isinstance(value, dict):
        dropped = ("seconds", "seconds_measure", "seconds_merge", "out", "command")
        return {name: _timeless(one) for name, one in value.items() if name not in dropped}
    return value


def require_told(folder, model, report):
    """That a report says whether it is of the model beside it."""
    assert (model, report) not in (("older", "complete"), ("absent", "complete")), "a report came before its model"
    if report != "absent":
        said = json.loads((folder / "global.json").read_bytes())["sha256"]
        real = hashlib.sha256((folder / "global.safetensors").read_bytes()).hexdigest()
        assert (said == real) == (model == report), f"a report that is {report} of a model that is {model}"


def outcome(path, before, after):
    """What is there: the file from before (None for none), or the whole new one."""
    now = path.read_bytes() if path.exists() else None
    assert now in (before, after), f"{path.name} is half-written or lost"
    return "complete" if now == after else "absent" if now is None else "older"


def main():
    """The full test: prints what came of it."""
    if sys.argv[1:2] == ["runs"]:
        for name, arguments in RUNS.items():
            with tempfile.TemporaryDirectory() as folder:
                print(name, killed_runs(Path(folder).resolve(), arguments, int(sys.argv[2])), flush=True)
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as folder:
        print("commands", dict(killed_commands(Path(folder).resolve(), count)))
        print("writers", dict(killed_writers(folder, count)))
        os.chdir("/")


if __name__ == "__main__":
    main()

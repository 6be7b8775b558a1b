"""The merges of `topics`, by commands on files and folders alone, beside those in memory: are they the same?

It writes the folders of the start and of the four clients' BERTs, and the clients' examples, runs `fedfisher measure`
and `fedfisher merge` on them, each as a process of its own, and scores the merged folders. Its table has the commands.

It needs the extra `torch`.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.checkpoints import topics
from experiments.checkpoints.methods import Trained, others, ours
from experiments.checkpoints.scoring import LABELS, over_seeds, scores
from experiments.lib import common

RULES = {  # what clients measure for, and what is then merged by it
    "fedavg": ("average",),
    "fisher-merge": ("fisher-merge", "fedfisher-diag"),
    "regmean": ("regmean",),
    "fedfisher-kfac": ("fedfisher-kfac",),
}


@dataclasses.dataclass(frozen=True)
class Settings(topics.Settings):
    """Flags.

    Attributes:
        rules: What clients measure for.
        seeds: As in `topics`, whose models these are.
    """

    rules: tuple[str, ...] = tuple(RULES)
    seeds: int = 1


QUICK = {**topics.QUICK, "rules": ("fedavg",)}


def run(rules: tuple[str, ...], **settings: Any) -> dict[str, Any]:
    """Both ways, by method: accuracy on each client's test windows, and how far parameters lie apart."""
    found, key = topics.trained(**settings)
    measured = len(found.parts[0].train[1])
    ways = {m: next(iter(w.values())) for m, w in (*others(found, 0), *ours(found, measured, "exact", key))}
    result: dict[str, Any] = {"commands": [], "methods": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, found, settings["width"], settings["seed"])
        for measured_for in rules:
            sent = [f"{measured_for}{n}.safetensors" for n in range(topics.CLIENTS)]
            for n, file in enumerate(sent):
                words = f"measure --model hf:tuned{n} --start base --data data{n}.npz --rule {measured_for} --silo {n}"
                result["commands"].append(called(folder, f"{words} --out {file}"))
            for method in RULES[measured_for]:
                rule = "fedavg" if method == "average" else method
                out = f"merge {' '.join(sent)} --base base --rule {rule} --out merged-{rule}"
                result["commands"].append(called(folder, out))
                result["methods"][method] = compared(found, ways[method](), folder / f"merged-{rule}")
    return result


def written(folder: Path, found: Trained, width: int, seed: int) -> None:
    """Write the start, the clients' models as folders that `from_pretrained` loads, and their training windows."""
    from fedfisher_jax import torch as bridge

    module = topics.module_of(width, seed)
    for name, params in {"base": found.start, **{f"tuned{n}": one for n, one in enumerate(found.tuned)}}.items():
        module.load_state_dict(bridge.state_dict(module, params))
        module.save_pretrained(folder / name)
    for n, part in enumerate(found.parts):
        x, y = part.train
        np.savez(folder / f"data{n}.npz", **x, labels=y)


def called(folder: Path, words: str) -> str:
    """Run a command in a folder, as a person would; the command.

    Raises:
        RuntimeError: it failed; what it said.
    """
    where = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fedfisher_jax.cli", *words.split()]
    done = subprocess.run(command, cwd=folder, env=os.environ | where, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fedfisher {words}: {done.stderr[-2000:]}")
    return f"fedfisher {words}"


def compared(found: Trained, params: Any, folder: Path) -> dict[str, Any]:
    """Compare a folder that commands merged with what was merged in memory."""
    from fedfisher_jax import torch as bridge

    by_commands = bridge.from_module(bridge.read(folder)).params
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), by_commands, params)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, found.start)
    ways = {"commands": by_commands, "memory": params}
    right = {way: scores(found, merged, "test")["accuracy"] for way, merged in ways.items()}
    return right | {"gap": max(jax.tree.leaves(gaps)), "moved": max(jax.tree.leaves(moved))}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    results = over_seeds(settings, run)
    rows, summary = [], {}
    for method in results[0]["methods"]:
        found = [result["methods"][method] for result in results]
        each = {way: 100 * np.array([one[way] for one in found]) for way in ("commands", "memory")}
        gap, moved = (max(one[name] for one in found) for name in ("gap", "moved"))
        right = [common.mean_std(each[way].mean(1), 2) for way in ("commands", "memory")]
        rows.append([LABELS[method], *right, f"{gap:.1e}", f"{moved:.2g}"])
        summary[method] = {"accuracy": {way: values.mean() for way, values in each.items()}, "gap": gap, "moved": moved}
    columns = ["", "by commands", "in memory", "largest difference of a parameter", "largest move from the start"]
    commands = "\n".join(results[0]["commands"])
    note = f"Mean accuracy in % on the four clients' test windows, {len(results)} seed(s).\n\n"
    common.report(settings.out, note + common.markdown_table(columns, rows) + f"\n```bash\n{commands}\n```\n", summary)


if __name__ == "__main__":
    main()

"""What made a result: command, commit, versions, machine. Carries no host names and no absolute paths."""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[2]


def describe() -> dict[str, Any]:
    """The provenance of a report that this process writes, as JSON-like values."""
    arguments = [Path(a).name if os.path.isabs(a) else a for a in sys.argv[1:]]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "torch", "nngeometry")
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": shlex.join(["python", *program(), *arguments]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions,
        "machine": machine(),
    }


def program() -> list[str]:
    """What follows ``python`` on the command line: a script of this repository as a module, another by its name."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(ROOT):
        return ["-m", ".".join(script.relative_to(ROOT).with_suffix("").parts)]
    return [script.name]


@functools.cache
def commit() -> str:
    """The commit of the code in use, with a + where a tracked source differs from it; empty outside of a checkout."""
    git = ["git", "-C", str(ROOT)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        texts = [
            subprocess.run([*git, *rest], capture_output=True, text=True, check=True).stdout.strip()
            for rest in (["rev-parse", "--short", "HEAD"], ["diff", "HEAD", "--name-only", "--", "*.py"])
        ]
        return texts[0] + ("+" if texts[1] else "")
    return ""


def machine() -> str:
    """The machine in words: processor, cores this process may use, memory, accelerators."""
    cpu, memory = platform.machine(), ""
    with contextlib.suppress(OSError, IndexError):
        cpu = Path("/proc/cpuinfo").read_text().split("model name")[1].split(":", 1)[1].split("\n")[0].strip()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = ", ".join(sorted({d.device_kind for d in jax.devices() if d.platform != "cpu"}))
    return f"{cpu}, {cores} cores{memory}" + (f", {devices}" if devices else "")

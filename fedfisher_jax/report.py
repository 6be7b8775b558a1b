"""What a run leaves behind: files written whole or not at all, the table on the terminal, the accuracy figure."""

import importlib.metadata
import json
import math
import os
import platform
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file under its name only when it is complete: a temporary file beside it, then `os.replace`.

    Its permissions are those of any new file, by the user's umask; when this returns it survives a loss of power.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # where folders can be opened
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write JSON atomically; arrays become lists, numbers that are not finite become null."""
    write_atomically(path, json.dumps(plain(record), indent=1) + "\n")


def plain(value: Any) -> Any:
    """The same record made of dicts, lists, strings, numbers, booleans and None only."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def require_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and prove that files can be written there.

    Raises:
        ValueError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder}: {error.strerror or error}") from error
    return folder


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide the numbers."""
    packages = ("fedfisher-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "platform": jax.default_backend(), **found}


def result_table(record: Mapping[str, Any]) -> Table:
    """The table at the end of a run: rules, then the references they are judged by."""
    table = Table(title=None, header_style="bold")
    for name in ("test", "accuracy", "loss", "Mbit up/client", "× FedAvg", "seconds"):
        table.add_column(name, justify="left" if name == "test" else "right", no_wrap=True)
    rules, references = record["rules"], record["references"]
    base = record["fedavg_bits"]
    best = max((rule["accuracy"] for rule in rules.values()), default=None)
    for name, rule in rules.items():
        bits, mark = rule["bits_up"], "bold" if rule["accuracy"] == best else ""
        row = [f"{rule['accuracy']:.4f}", f"{rule['loss']:.4f}", f"{bits / 1e6:.2f}", f"{bits / base:.2f}"]
        table.add_row(name, *row, f"{rule['seconds']:.1f}", style=mark)
    table.add_section()
    labels = {"best_local": "best local", "ensemble": "ensemble", "pooled": "pooled"}
    for key, label in labels.items():
        if references.get(key):
            reference = references[key]
            table.add_row(label, f"{reference['accuracy']:.4f}", f"{reference['loss']:.4f}", "", "", "", style="dim")
    return table


def plot_accuracy(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Bars of test accuracy: local models, rules, references."""
    locals_ = record["clients"]["accuracies"]
    names = [f"client {number}" for number in range(len(locals_))] if len(locals_) <= 10 else ["best local"]
    values = list(locals_) if len(locals_) <= 10 else [max(locals_)]
    colours = ["#BBBBBB"] * len(names)
    for name, rule in record["rules"].items():
        names, values, colours = [*names, name], [*values, rule["accuracy"]], [*colours, "#0072B2"]
    for name in ("ensemble", "pooled"):
        if record["references"].get(name):
            names, values = [*names, name], [*values, record["references"][name]["accuracy"]]
            colours = [*colours, "#E69F00"]
    figure = Figure(figsize=(6.4, 0.6 + 0.32 * len(names)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(names, [100 * value for value in values], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.set_xlabel("test accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    settings = record["settings"]
    skew = (
        f", α = {settings['alpha']}"
        if settings["partition"] in ("dirichlet-client", "dirichlet-class", "quantity")
        else ""
    )
    axes.set_title(
        f"{settings['dataset']}, {settings['model']}, {settings['clients']} clients, {settings['partition']}{skew}",
        fontsize=9,
    )
    figure.savefig(path)

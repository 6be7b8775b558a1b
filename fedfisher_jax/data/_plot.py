"""How unevenly the clients' data are split, as a figure."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._files import write_figure

LONGEST = 16  # characters of a class's name in a figure; tables have all of it


def short(name: str) -> str:
    """Cut a name that a figure has no room for."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def plot_label_counts(
    counts: np.ndarray, path: str | os.PathLike[str], what: str = "class", names: Sequence[Any] | None = None
) -> None:
    """Write a figure of label counts: a cell per client and class, and each client's size as a bar above.

    A grid, because it stays readable from 5 to hundreds of clients and classes; cells are numbered while there is room.
    Colour is by the square root of the count, and classes that a client does not have stay white.

    Args:
        counts: int [M, C], as `label_counts` returns.
        path: the file to write; its suffix is the format (.png, .pdf, .svg); without one there are a .png and a .pdf.
        what: what the columns of `counts` are, for people.
        names: C of them, for the columns of `counts`; None numbers the columns from 0.

    Raises:
        ValueError: `counts` is not a non-empty matrix, or `names` are not as many as its columns.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator

    if counts.ndim != 2 or counts.size == 0:
        raise ValueError(f"counts: got {counts.shape}, expected shape [clients, classes]")
    num_clients, num_classes = counts.shape
    if names is not None and len(names) != num_classes:
        raise ValueError(f"names: got {len(names)}, expected one for each of {num_classes} columns of counts")
    width, height = np.clip(2.4 + 0.55 * num_clients, 5.5, 13.0), np.clip(0.32 * num_classes, 2.4, 8.0)
    figure = Figure(figsize=(width, height + 1.9), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.0, height), width_ratios=(40, 1))
    bars, cells, colours = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[1, 1]))

    bars.bar(np.arange(num_clients), counts.sum(axis=1), width=0.8, color="#35618f")
    bars.set(xlim=(-0.5, num_clients - 0.5), ylabel="examples", xticks=[])
    bars.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_title(f"{int(counts.sum()):,} examples over {num_clients} client{'s' * (num_clients > 1)}", fontsize=11)

    norm = PowerNorm(0.5, vmin=0, vmax=max(1, int(counts.max())))
    image = cells.imshow(
        np.ma.masked_equal(counts.T, 0), cmap="YlGnBu", norm=norm, aspect="auto", interpolation="nearest"
    )
    cells.set(xlabel="client", ylabel=what)
    for axis, count in ((cells.xaxis, num_clients), (cells.yaxis, num_classes)):
        axis.set_major_locator(MaxNLocator(nbins=25, integer=True) if count > 25 else FixedLocator(range(count)))
    if names is not None:
        every = -(-num_classes // 25)
        cells.set_yticks(range(0, num_classes, every), [short(str(name)) for name in names[::every]])
    cells.set_xticks(np.arange(num_clients + 1) - 0.5, minor=True)
    cells.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    if num_clients <= 120 and num_classes <= 60:
        cells.grid(which="minor", color="#d9d9d9", linewidth=0.4)
    cells.tick_params(which="both", length=0)
    figure.colorbar(image, cax=colours, label=f"examples of the {what}").outline.set_visible(False)
    if num_clients <= 16 and num_classes <= 30:
        for (client, label), count in np.ndenumerate(counts):
            if count:
                dark = norm(count) > 0.6
                cells.text(
                    client,
                    label,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "#222222",
                )
    write_figure(figure, path)

"""Tables, image grids and the figure of attacks.py."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import common
from experiments.privacy.images import IMAGES
from experiments.privacy.world import KINDS, PROTECTIONS
from fedfisher_jax._files import write_atomically, write_figure

Records = Sequence[Mapping[str, Any]]
MOST_DB = 60.0  # where images that are read off are cut in the figure
GUESSES = {"random": "random pixels", "public": "public average", "public class": "public average of the class"}
MARKERS = {"none": "o", "quantised": "s", "sum": "^", "dp": "X"}
HEADS = {"alone": "o", "all": "^", "noise": "P", "divided": "D"}  # how a head of `privacy.sums` is seen → marker
HEADS_WORDS = {"noise": "alone, noise for each example", "divided": "secure sum, noise for each example"}
NUMBERS = {  # attack → (result, header, decimals, factor)
    "accuracy": ("accuracy", "accuracy of the merge, %", 1, 100),
    "mean image": ("psnr", "mean image, PSNR in dB", 1, 1),
    "components": ("overlap", "first five principal components, overlap", 3, 1),
    "membership by loss": ("auc", "membership by loss, AUC", 3, 1),
    "membership by Fisher score": ("auc", "membership by Fisher score, AUC", 3, 1),
    "membership by leverage": ("auc", "membership by leverage, AUC", 3, 1),
    "labels from the update": ("distance", "labels from the update, distance", 3, 1),
    "labels from gradients": ("distance", "labels from gradients, distance", 3, 1),
    "labels from inputs": ("distance", "labels from inputs, distance", 3, 1),
    "gradient inversion": ("psnr", "gradient inversion of a step, PSNR in dB", 1, 1),
}
JUDGED = {  # of class-wise reconstructions: result → (header, decimals)
    "psnr": ("PSNR, nearest member", 1),
    "psnr_other": ("PSNR, nearest other", 1),
    "gap": ("difference", 2),
    "psnr_class_mean": ("PSNR, class mean", 1),
    "ssim": ("SSIM, member", 2),
    "ssim_other": ("SSIM, other", 2),
    "mse": ("MSE, member", 3),
}


def picture_path(out: Path, network: str, attack: str, kind: str, protection: str) -> Path:
    """Where the reconstructions of a run lie."""
    return out / "pictures" / ("_".join((network, attack, kind, protection)).replace(" ", "-") + ".npz")


def save_pictures(path: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Images in 8 bits."""
    path.parent.mkdir(exist_ok=True)
    coarse: dict[str, Any] = {
        k: v if v.dtype == bool else np.round(255 * np.clip(v, 0, 1)).astype(np.uint8) for k, v in pictures.items()
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **coarse)
    write_atomically(path, buffer.getvalue())


def values(records: Records, name: str, **where: Any) -> np.ndarray:
    """A result of all seeds; empty if there is no such run."""
    return common.column(records, name, **where)


def tables(network: str, records: Records) -> str:
    """Class-wise images, then everything that is one number."""
    rows = []
    for attack in IMAGES:
        for kind, protection in pairs(records, attack):
            where = {"attack": attack, "kind": kind, "protection": protection}
            found = [common.mean_std(values(records, name, **where), digits) for name, (_, digits) in JUDGED.items()]
            rows.append([attack, KINDS[kind], PROTECTIONS[protection], *found])
    for guess, label in GUESSES.items():
        found = [common.mean_std(values(records, n, attack="guess", kind=guess), d) for n, (_, d) in JUDGED.items()]
        rows.append([label, "", "", *found])
    text = f"## {network}\n\n### Images of each class\n\n"
    header = ["attack", "payload", "seen", *(label for label, _ in JUDGED.values())]
    text += common.markdown_table(header, rows)
    rows = []
    for attack, (name, label, digits, factor) in NUMBERS.items():
        for kind in dict.fromkeys(kind for kind, _ in pairs(records, attack)):
            cells = []
            for protection in PROTECTIONS:
                found = values(records, name, attack=attack, kind=kind, protection=protection)
                cells.append(common.mean_std(found, digits, factor) if len(found) else "–")
            rows.append([label, KINDS[kind], *cells])
    whole = {guess: common.mean_std(values(records, "psnr_whole", attack="guess", kind=guess)) for guess in GUESSES}
    distance = common.mean_std(values(records, "distance", attack="guess", kind="public"), 3)
    text += "\n### Everything else\n\n" + common.markdown_table(["", "payload", *PROTECTIONS.values()], rows)
    text += f"\nWithout an attack: AUC 0.5; equal shares of all classes, distance {distance}; the public average "
    text += f"against a client's mean image {whole['public']} dB, random pixels {whole['random']} dB.\n\n"
    return text


def pairs(records: Records, attack: str) -> list[tuple[str, str]]:
    """Kinds and protections that were attacked so, in the order of the tables."""
    there = {(r["settings"]["kind"], r["settings"]["protection"]) for r in records if r["settings"]["attack"] == attack}
    return [(kind, protection) for kind in KINDS for protection in PROTECTIONS if (kind, protection) in there]


BEST = {  # what is revealed → (attacks, result, whether more is more revealing)
    "class images, PSNR to the class mean": (tuple(IMAGES), "psnr_class_mean", True),
    "class images, PSNR member − other": (tuple(IMAGES), "gap", True),
    "membership, AUC": (
        ("membership by loss", "membership by Fisher score", "membership by leverage"),
        "auc",
        True,
    ),
    "label shares, distance": (
        ("labels from the update", "labels from gradients", "labels from inputs"),
        "distance",
        False,
    ),
}


def best(records: Records, what: str, kind: str, protection: str) -> np.ndarray:
    """The most revealing attack's result for each seed; a payload with a Fisher holds weights, too."""
    attacks, name, more = BEST[what]
    kinds = {kind, "weights"}
    chosen = [
        (float(np.mean(found)), found)
        for attack in attacks
        for one in kinds
        if len(found := values(records, name, attack=attack, kind=one, protection=protection))
    ]
    finite = [(mean, found) for mean, found in chosen if np.isfinite(mean)]
    if not finite:
        return np.full(1, np.nan)
    return (max if more else min)(finite, key=lambda pair: pair[0])[1]


def summary(records: Records) -> dict[str, Any]:
    """The best attack on every view; and what Kronecker factors add to weights, paired by seed."""
    found: dict[str, Any] = {}
    for what in BEST:
        for kind, protection in pairs(records, "accuracy"):
            scores = best(records, what, kind, protection)
            found.setdefault(what, {})[f"{KINDS[kind]}, {PROTECTIONS[protection]}"] = common.mean_std(scores, 3)
        gained = best(records, what, "kronecker", "none") - best(records, what, "weights", "none")
        found[what]["Kronecker − weights, paired"] = common.mean_std(gained, 3)
    for kind, protection in pairs(records, "gradient inversion"):
        scores = values(records, "psnr", attack="gradient inversion", kind=kind, protection=protection)
        found.setdefault("gradient inversion, PSNR", {})[PROTECTIONS[protection]] = common.mean_std(scores, 1)
    return found


def figure(networks: Sequence[str], records: Records, sizes: Mapping[int, np.ndarray], heads: Records) -> Any:
    """Accuracy of the merge against what the best attack finds; membership against the number of examples.

    Args:
        networks: their names, a column each.
        records: results of attacks.py.
        sizes: AUC by a client's number of examples.
        heads: results of `privacy.sums --merged` for the first network and the same clients, or none.
    """
    shown = ("membership, AUC", "class images, PSNR to the class mean")
    fig, axes = common.figure(2, len(networks) + 1, width=3.6, height=3.0)
    for place, network in enumerate(networks):
        mine = [r for r in records if r["settings"].get("network") == network]
        for axis, what in zip(axes[:, place], shown, strict=True):
            for kind, protection in pairs(mine, "accuracy"):
                accuracy = 100 * values(mine, "accuracy", attack="accuracy", kind=kind, protection=protection)
                scores = best(mine, what, kind, protection)
                colour = common.COLOURS[list(KINDS).index(kind)]
                axis.errorbar(
                    accuracy.mean(),
                    scores.mean(),
                    xerr=accuracy.std(),
                    yerr=scores.std(),
                    marker=MARKERS[protection],
                    color=colour,
                    elinewidth=0.6,
                    markersize=6,
                    alpha=0.85,
                )
            axis.set(xlabel="accuracy of the merge (%)", ylabel=what)
        for how, marker in HEADS.items() if heads and not place else ():
            accuracy = 100 * values(heads, "accuracy", kind="accuracy", how="alone" if how == "all" else how)
            for axis, name in zip(axes[:, place], ("auc", "psnr_class_mean"), strict=True):
                scores = np.minimum(values(heads, name, kind="head", how=how), MOST_DB)
                spread = {
                    "xerr": accuracy.std(),
                    "yerr": scores.std(),
                    "elinewidth": 0.6,
                    "markersize": 6,
                    "alpha": 0.85,
                }
                axis.errorbar(accuracy.mean(), scores.mean(), marker=marker, color="black", **spread)
        guess = values(mine, "psnr_class_mean", attack="guess", kind="public class").mean()
        axes[1, place].axhline(guess, color="0.5", linestyle=":", label="public class average")
        axes[1, place].legend(loc="lower right")
        axes[0, place].axhline(0.5, color="0.5", linestyle=":")
        axes[0, place].set_title(network)
    last = axes[0, -1]
    found = np.array([sizes[size] for size in sizes])
    last.errorbar(list(sizes), found.mean(1), yerr=found.std(1), marker="o", color=common.COLOURS[1])
    last.axhline(0.5, color="0.5", linestyle=":")
    last.set(xscale="log", xlabel="examples of the client", ylabel="membership by leverage, AUC")
    last.set_xticks(list(sizes)[::2], [f"{size:,}" for size in list(sizes)[::2]])
    last.set_xticks([], minor=True)
    last.set_title("A of raw pixels")
    legend = axes[1, -1]
    legend.axis("off")
    kinds = [kind for kind in KINDS if any(r["settings"].get("kind") == kind for r in records)]
    handles = [legend.plot([], [], "o", color=common.COLOURS[list(KINDS).index(k)], label=KINDS[k])[0] for k in kinds]
    if heads:
        handles.append(legend.plot([], [], "o", color="black", label="head's sums (nothing trained)")[0])
    handles += [legend.plot([], [], m, color="0.3", label=PROTECTIONS[p])[0] for p, m in MARKERS.items()]
    handles += [legend.plot([], [], HEADS[p], color="0.3", label=w)[0] for p, w in HEADS_WORDS.items() if heads]
    legend.legend(handles=handles, loc="center left")
    return fig


COMPONENT_ROWS = (("kronecker", "none"), ("kronecker", "quantised"), ("gram", "sum"), ("low_rank", "none"))


def component_grid(out: Path, network: str) -> None:
    """The client's mean image and principal components, and what is read off its payload."""
    paths = {row: picture_path(out, network, "components", *row) for row in COMPONENT_ROWS}
    stored = {row: dict(np.load(path)) for row, path in paths.items() if path.exists()}
    if not stored:
        return
    first = next(iter(stored.values()))
    rows = {"real": first["neighbours"]}
    rows |= {f"{KINDS[kind]},\n{PROTECTIONS[seen]}": found["images"] for (kind, seen), found in stored.items()}
    columns = ["mean", *(f"component {n}" for n in range(1, len(first["images"])))]
    write_grid(out / f"components_{network}.png", columns, rows)


def write_grid(path: Path, columns: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
    """Draw rows of images [columns, h, w, 1] of 8 bits under each other."""
    fig, axes = common.figure(len(rows), len(columns), width=0.85, height=0.7)
    fig.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, hspace=0, wspace=0)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=7)
    for place, (label, images) in enumerate(rows.items()):
        for axis, image in zip(axes[place], images, strict=True):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
        axes[place, 0].set_ylabel(label.rstrip(), rotation=0, ha="right", va="center", fontsize=7)
    write_figure(fig, path)


def picture_grid(out: Path, network: str) -> None:
    """Rows of payloads, columns of classes, the nearest real images of the client beneath."""
    rows = [("model inversion", "weights", "none")]
    rows += [("Fisher-aware inversion", kind, "none") for kind in KINDS if kind != "weights"]
    rows += [("Fisher-aware inversion", "kronecker", "quantised"), ("Fisher-aware inversion", "gram", "sum")]
    rows += [("Fisher-aware inversion", "kronecker", "dp")]
    paths = {row: picture_path(out, network, *row) for row in rows}
    stored = {row: dict(np.load(path)) for row, path in paths.items() if path.exists()}
    if not stored:
        return
    first = next(iter(stored.values()))
    classes = np.flatnonzero(first["present"])
    shown = {"real class mean": first["class_means"][classes]}
    for number, ((_, kind, protection), found) in enumerate(stored.items()):
        shown[f"{KINDS[kind]},\n{PROTECTIONS[protection]}"] = found["images"][classes]
        shown["its nearest real" + " " * number] = found["neighbours"][classes]  # labels are keys, blanks cut off later
    write_grid(out / f"grid_{network}.png", [f"class {label}" for label in classes], shown)

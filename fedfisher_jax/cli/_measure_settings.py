"""What `fedfisher measure` is told, and which of it goes together."""

import dataclasses
from pathlib import Path
from typing import Literal

from .. import _files
from ..models import weights
from ..payload._header import MOST_TEXT
from ._ranges import require_ranges

HF, TORCH = "hf:", "torch:"  # how --model names a folder of transformers, and a function that makes a module
OF_TEXTS = ("text_column", "label_column", "length")
TRAINING = ("epochs", "learning_rate", "momentum", "augment")  # settings that a checkpoint leaves no use for
PRIVATE = (  # of epsilon
    "delta", "rounds", "unit", "clip_params", "clip_fisher", "clip_features", "clip_gradients", "share", "trust",
    "sharers",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """Train from the start on this silo's data, measure, and write one payload file: all that leaves the silo."""

    data: str
    """This silo's examples: a .npz file with train_x, train_y (or x, y), a name of `fedfisher list`, or with a folder
    of checkpoints a folder of .npz files of the same names."""
    start: Path = Path("start.safetensors")
    """The common starting model, from `fedfisher init`."""
    out: Path = Path("payload.safetensors")
    """The payload file; with a folder of checkpoints a folder."""
    local: Path | None = None
    """Write this silo's own trained model here, too; it is for this silo alone."""
    silo: int = 0
    """This silo's number; no other silo of the federation may have it."""
    name: str = ""
    """What people call this silo; not written unless given."""
    rule: str = "fedfisher-kfac"
    """Merge rule to measure for: a name of `fedfisher list`."""
    checkpoint: Path | None = None
    """An already trained safetensors file of this network, a folder of its shards, or a folder of such files: nothing
    is trained, only measured."""
    budget: float | None = None
    """Compress the file to this multiple of FedAvg's 32 bits per parameter."""
    compression: Literal["none", "authors"] = "none"
    """"authors": the scheme of arXiv 2403.12329."""
    stochastic: bool = False
    """With a budget, round so that every number is right on average."""
    kind: Literal["exact", "monte_carlo", "empirical"] = "exact"
    """Kind of Fisher information."""
    samples: int = 1
    """Monte-Carlo draws per example."""
    epochs: int = 30
    """Local epochs."""
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    augment: bool = False
    """Random crops and flips while training, for images."""
    unscaled: bool = False
    """Train on inputs that are far from one, which is refused otherwise where the start does not scale them."""
    seed: int = 0
    """Seed of training and Monte-Carlo draws, as in `fedfisher run`."""
    epsilon: float | None = None
    """Privacy loss ε: clip what is sent and add noise (docs/privacy.md)."""
    unit: Literal["silo", "example"] = "silo"
    """Whom epsilon is for: this silo as a whole, or each of its examples, for rules that send sums over examples, and
    by private training for rules that train."""
    delta: float = 1e-5
    """Probability δ with which the promise may fail."""
    rounds: int = 1
    """Number of files of this silo, in all, that the promise holds for: 2 for analytic, then recalibrate."""
    clip_params: float = 1.0
    """With epsilon: largest norm of trained minus starting parameters."""
    clip_fisher: float = 1.0
    """With epsilon: largest norm of each array of the Fisher information or input moments; with epsilon of examples, of
    what an example adds to it."""
    label: tuple[str, ...] = ("label",)
    """Column, or columns, of the labels in a table."""
    ignore: tuple[str, ...] = ()
    """Columns of a table that are no inputs."""
    clip_features: float = 1.0
    """With epsilon of examples: largest norm of an example's features, or of its inputs for pseudo-data; all silos
    should have the same."""
    clip_gradients: float = 1.0
    """With epsilon of examples: largest norm of an example's gradient while training, or for natural-gradient."""
    share: float = 0.25
    """With epsilon of examples and a rule that trains: share of the privacy for what is sent beside the model."""
    trust: Literal["local", "distributed"] = "local"
    """With epsilon of examples: who adds noise, this silo all of it, or all silos a share inside `fedfisher secure`,
    which alone takes such a file; it has no noise yet, and stays here."""
    sharers: int = 1
    """With --trust distributed: among how many silos the noise is divided; at most as many as must stay to the end
    (`secure join --threshold`), less those that may tell the server their share."""
    model: str | None = None
    """module:function, where the start is of a network of your own. Or a fine-tuned model that is only measured
    (docs/checkpoints.md): hf:FOLDER, of transformers or an adapter of peft, with --start the folder of the model that
    all fine-tuned; or torch:module:function, where function() returns a PyTorch module. --start and --checkpoint are
    its state dicts then; where there is none, the numbers are as the function makes them."""
    likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical"
    """With torch: what the outputs are fitted with."""
    text_column: str = "text"
    """With hf: column of the texts in a .jsonl or .parquet file."""
    label_column: str = "label"
    """With hf: column of the labels, integers; where there is none, next tokens are predicted."""
    length: int = 128
    """With hf: tokens of a text at most."""
    where: str | None = None
    """With hf: or torch: a regular expression; only parameters in whose names it is found are measured and sent, and
    the others must be the start's. ^classifier is a head, ^(?!.*embeddings) everything but embeddings."""


def each_of(settings: MeasureSettings) -> list[MeasureSettings]:
    """The settings of every payload: one, or one for each checkpoint of a folder."""
    if settings.checkpoint is None or not settings.checkpoint.is_dir():
        return [settings]
    found = weights.checkpoints(settings.checkpoint.glob("*.safetensors"))
    if len(found) == 1 and len(next(iter(found.values()))) > 1 and not Path(settings.data).is_dir():
        return [settings]  # the shards of one
    if sharded := [name for name, parts in found.items() if len(parts) > 1]:
        raise ValueError(f"checkpoint: {sharded[0]} has shards: give each checkpoint in shards as a folder of its own")
    if not found:
        raise ValueError(f"checkpoint: no .safetensors file in {settings.checkpoint}")
    if settings.silo + len(found) > 2**31:
        raise ValueError(f"silo: got {settings.silo}, expected room for {len(found)} numbers below 2^31")
    _files.require_folder(settings.out)
    return [
        dataclasses.replace(
            settings,
            checkpoint=file,
            data=str(Path(settings.data) / f"{file.stem}.npz"),
            out=settings.out / file.name,
            silo=number,
        )
        for number, (file,) in enumerate(found.values(), settings.silo)
    ]


def changed(settings: MeasureSettings, names: tuple[str, ...]) -> str:
    """Name those of the settings that are not the defaults."""
    return ", ".join(name for name in names if getattr(settings, name) != getattr(MeasureSettings, name))


def of_pytorch(settings: MeasureSettings) -> bool:
    """Tell whether the model is one of PyTorch, which is only measured."""
    return (settings.model or "").startswith((HF, TORCH))


def check(settings: MeasureSettings) -> None:
    """Refuse settings that do not go together, before any work.

    Raises:
        ValueError: which, and why.
    """
    require_ranges(settings)
    if settings.checkpoint is not None and (given := changed(settings, TRAINING)):
        raise ValueError(f"{given}: with a checkpoint nothing is trained")
    if settings.local is not None and (settings.checkpoint is not None or of_pytorch(settings)):
        raise ValueError("local: with a checkpoint nothing is trained")
    if len(settings.name) > MOST_TEXT or not settings.name.isprintable():
        raise ValueError(f"name: got {settings.name[:40]!r}, expected at most {MOST_TEXT} printable characters")
    if settings.budget is not None and settings.compression != "none":
        raise ValueError("budget, compression: give one of them")
    _check_model(settings)
    if settings.samples != 1 and settings.kind != "monte_carlo" and "monte_carlo" not in settings.rule:
        raise ValueError(f"samples: got {settings.samples}, expected --kind monte_carlo with it, which draws them")
    if settings.stochastic and settings.budget is None:
        raise ValueError("stochastic: needs a budget")


def _check_model(settings: MeasureSettings) -> None:
    """Refuse settings that a model of its kind has no use for."""
    if not of_pytorch(settings):
        if given := changed(settings, ("where", "likelihood", *OF_TEXTS)):
            raise ValueError(f"{given}: expected it with --model hf:FOLDER or torch:module:function alone")
        return
    unused = OF_TEXTS if (settings.model or "").startswith(TORCH) else ("checkpoint", "likelihood", "label", "ignore")
    if given := changed(settings, (*TRAINING, *PRIVATE, "batch_size", "unscaled", "epsilon", *unused)):
        raise ValueError(f"{given}: {settings.model} is only measured, and has no use for it")

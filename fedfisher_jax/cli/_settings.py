"""The settings of `fedfisher run`, and which of them go together."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any, Literal

from ..federate import rounds
from ..federate._map_clients import STRATEGIES
from ..merge import catalogue
from ._clients import count_held_out
from ._local_training import rate, variant
from ._ranges import require_ranges
from ._servers import server_of, server_words


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Train clients on unevenly split data, merge them by every rule, once or in rounds, and show what it bought."""

    dataset: str = "digits"
    """A name of `fedfisher list`, a path to your .npz, .csv or .parquet, or Hugging Face's as hf:FOLDER or hf:NAME."""
    model: str = "mlp"
    """A name of `fedfisher list`, or your own as module:function: function(input_shape, classes) → (init, apply)."""
    clients: int = 5
    """Number of clients."""
    examples: int | None = None
    """Training examples that are drawn for all clients together; default all there are."""
    partition: str = "dirichlet-client"
    """How examples are split over clients: a name of `fedfisher list`."""
    alpha: float = 0.1
    """Concentration of the Dirichlet splits: small is uneven."""
    epochs: int = 30
    """Local epochs, in every round."""
    rules: tuple[str, ...] = ("fedavg", "fisher-merge", "fedfisher-diag", "fedfisher-kfac")
    """Merge rules, or your own as module:function; options stand after commas: fedfisher-kfac,damping=1. Over rounds
    also those of the rule's own server: fedavg,server-learning-rate=0.1 (-optimizer, -momentum, -clip)."""
    seed: int = 0
    """Seed of initialisation, training and Monte-Carlo draws."""
    data_seed: int | None = None
    """Seed of the split; default the value of --seed."""
    out: Path = Path("runs/latest")
    """Folder of result.json, figures and merged models."""
    preset: Literal["none", "paper"] = "none"
    """"paper": every rule with the authors' settings, their server loop picked by 500 labelled training examples."""
    pooled: bool = False
    """Also train one model on all clients' data, for as many epochs as a client trains in all rounds."""
    rounds: int = 1
    """Rounds, each of training, measuring and merging; 1 is one shot."""
    sampled: int | None = None
    """Clients that take part in a round, drawn anew each time; default all."""
    participation: float | None = None
    """The same as a share of all clients."""
    local: Literal["plain", "fedprox", "scaffold", "feddyn"] = "plain"
    """Variant of local training, over rounds."""
    strength: float | None = None
    """μ of FedProx, α of FedDyn."""
    server_optimizer: str | None = None
    """Optax's name of the server's optimiser over rounds, such as sgd; "server-adam": Adam for few rounds (b1 0.5, b2
    0.99); default takes the merged model."""
    server_learning_rate: float | None = None
    """Learning rate of the server's optimiser; default 0.01 for server-adam, 1 for others."""
    server_schedule: str | None = None
    """Optax's schedule of that rate, counted in rounds, as for --schedule."""
    server_momentum: float = 0.0
    """Momentum of the server's sgd."""
    server_clip: float | None = None
    """Longest step of the server, in units of √Σ ‖θ_i − θ‖² over the round's clients; default any."""
    lengths: tuple[float, ...] = ()
    """Multiples of the server's step to try in every round, such as 0.25 0.5 1 2: the round's clients send their mean
    loss at each, one number, and the server takes the best one. Each costs a pass over their examples."""
    warm_up: str | None = None
    """Rule of the first rounds, which all --rules then go on from."""
    warm_up_rounds: int = 0
    """How many of --rounds are by --warm-up."""
    personalise: int = 0
    """Epochs for which every client at last fine-tunes the model; a fifth of its examples is held out to judge it."""
    held_out: float | None = None
    """Share of the clients that take part in no round; they alone --personalise, on half of their examples."""
    shots: int | None = None
    """Personalise by so many examples of each client as well."""
    personalise_learning_rate: float | None = None
    """Learning rate of that fine-tuning; default the clients'."""
    barrier: bool = False
    """Measure in every round how much worse the merged model is on a client's data than its own (FedFish)."""
    optimizer: str = "sgd"
    """Optax's name of the clients' optimiser."""
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    """Momentum of sgd."""
    schedule: str | None = None
    """Optax's schedule of the learning rate, counted in a client's steps, from 0 in every round:
    cosine_decay_schedule,decay_steps=200. It starts, or has its peak, at --learning-rate."""
    inputs: Literal["standardised", "as-is"] = "standardised"
    """What is done to your own data: every channel or feature gets mean 0 and spread 1 by the training examples."""
    likelihood: Literal["categorical", "gaussian", "bernoulli"] = "categorical"
    """What your own targets are: classes, numbers to regress on, or labels of 0 and 1 of which each may hold."""
    label: tuple[str, ...] = ("label",)
    """Column of the labels in your own .csv or .parquet; several, where they are no classes."""
    silo_column: str | None = None
    """Column that says whose a row is in your own .csv or .parquet, for --partition natural."""
    ignore: tuple[str, ...] = ()
    """Columns that are no inputs."""
    bias: bool = False
    """Whether the layers have biases (the papers' networks have none)."""
    start: Literal["usual", "designed"] = "usual"
    """"designed": convolutions made for the heads of `analytic`, cosines first; free of data."""
    kind: Literal["exact", "monte_carlo", "empirical"] = "exact"
    """Kind of Fisher information."""
    samples: int = 1
    """Monte-Carlo draws per example."""
    damping: float | None = None
    """Damping of the fedfisher solvers, relative to a layer's mean diagonal; by default each rule's own."""
    min_size: int | None = None
    """Fewest examples of a client, for the splits that have it."""
    classes_per_client: int = 2
    """Classes of each client, for the shards split."""
    strategy: str | None = None
    """How clients share the machine: sequential, threads, vectorised, devices or pmap."""
    data_dir: Path | None = None
    """Folder where data sets lie."""
    save: bool = True
    """Write merged models to OUT/models, for `fedfisher evaluate` and `predict`."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that are told every record, each in a folder of its own under --out, with no network (extras)."""
    overwrite: bool = False
    """Run again, or instead, where --out holds a run already."""
    distributed: bool = False
    """Join the other hosts of a pod or a Slurm step, each of which runs this same command; the first one reports."""


OVER_ROUNDS = (
    *("sampled", "participation", "local", "strength", "server_optimizer", "server_learning_rate", "server_schedule"),
    *("server_momentum", "server_clip", "lengths", "warm_up", "warm_up_rounds", "personalise", "barrier"),
    *("held_out", "shots", "personalise_learning_rate"),
)
"""The settings that have no meaning for one shot."""


def check(settings: RunSettings) -> None:
    """Refuse numbers out of range, and settings that do not go together.

    Raises:
        ValueError: which one.
    """
    require_ranges(settings)
    if len(set(settings.rules)) != len(settings.rules) or not settings.rules:
        raise ValueError(f"rules: expected different names, at least one, got {' '.join(settings.rules) or 'none'}")
    if settings.preset == "paper" and settings.damping is not None:
        raise ValueError("damping: the paper's loop has none; leave it out with --preset paper")
    if settings.preset == "paper" and settings.likelihood != "categorical":
        raise ValueError(f"likelihood: got {settings.likelihood}, expected categorical, for which --preset paper is")
    if settings.strategy is not None and settings.strategy not in STRATEGIES:
        raise ValueError(f"strategy: got {settings.strategy!r}, expected one of {', '.join(STRATEGIES)}")
    rate("schedule", settings.learning_rate, settings.schedule)
    if settings.rounds == 1:
        defaults = {field.name: field.default for field in dataclasses.fields(settings)}
        given = [name for name in OVER_ROUNDS if getattr(settings, name) != defaults[name]]
        if given:
            raise ValueError(f"rounds: got 1, which is one shot, expected at least 2 with {', '.join(given)}")
        for name in settings.rules:
            if words := server_words(name):
                raise ValueError(
                    f"rounds: got 1, which is one shot, expected at least 2 with {name}, {', '.join(words)}"
                )
        return
    if len(set(settings.lengths)) != len(settings.lengths):
        raise ValueError(f"lengths: got {' '.join(map(str, settings.lengths))}, expected numbers that differ")
    if (settings.warm_up is None) != (settings.warm_up_rounds == 0):
        raise ValueError("warm_up, warm_up_rounds: expected both or neither")
    if settings.warm_up_rounds >= settings.rounds:
        given = f"{settings.warm_up_rounds} of {settings.rounds} rounds"
        raise ValueError(f"warm_up_rounds: got {given}, expected some left for --rules")
    variant(settings.local, settings.strength, settings)
    given = [name for name in ("held_out", "shots", "personalise_learning_rate") if getattr(settings, name) is not None]
    if given and not settings.personalise:
        raise ValueError(f"{', '.join(given)}: expected --personalise with it")
    for name in (*settings.rules, *([settings.warm_up] if settings.warm_up else [])):
        server_of(settings, name)
        if not catalogue.goes_on(name):
            raise ValueError(f"rules: got {name}, which makes another network, from which no round can start")
    sampled_of(settings, settings.clients - count_held_out(settings, settings.clients))


def sampled_of(settings: RunSettings, registered: int) -> int:
    """How many clients take part in a round.

    Raises:
        ValueError: both a number and a share, or one that is out of range.
    """
    if settings.sampled is not None and settings.participation is not None:
        raise ValueError("sampled, participation: got both, expected one of them")
    if settings.participation is not None:
        return rounds.fraction(settings.participation, registered)
    sampled = registered if settings.sampled is None else settings.sampled
    if not 1 <= sampled <= registered:
        raise ValueError(f"sampled: got {sampled}, expected 1 to {registered}, the number of clients")
    return sampled


def command_of(settings: Any, command: str = "run") -> str:
    """The command line of a run or a sweep: every setting that is not the default."""
    return shlex.join(["fedfisher", *words_of(settings, command)])


UNSAID = ("overwrite", "file", "status", "on")  # what changes nothing of a run or a sweep; a file's settings are said


def words_of(settings: Any, command: str = "run") -> list[str]:
    """The arguments of `fedfisher` for a run or a sweep, but for those `UNSAID`."""
    words = [command]
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), "--" + field.name.replace("_", "-")
        if value == field.default or field.name in UNSAID:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words

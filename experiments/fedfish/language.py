"""Next-token prediction: federated pre-training on half of the clients, personalisation on the others (2311.10291).

A small transformer learns Python's standard library, a package or group of modules per client; or any folder of text
files. The paper goes from C4 to Stack Overflow; here from one half of the packages to the other, few-shot too.
"""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.fedfish import ngram
from experiments.lib import common
from fedfisher_jax import (
    Cohort,
    Federation,
    LocalTraining,
    categorical,
    cohort,
    data,
    evaluate,
    models,
    personalise,
    rounds,
)
from fedfisher_jax.merge import fedavg, fedfish

LENGTH, BATCH, SHOTS = 64, 16, 16
METHODS = {"fedavg": "FedAvg", "fedfish": "FedFish"}
LOCAL = optax.adam(2e-3)


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        folder: Of text files, one file or sub-folder a client; by default Python's standard library.
        tokens: bytes or characters.
        windows: Training windows of a client in a round's training, at most; its first ones.
        sampled: Clients in a round.
        rounds: Of pre-training.
        epochs: Numbers of local epochs to compare.
        server_rate: Of the server's Adam; 0 takes the merged model as it is.
        tuned_epochs: Of personalisation.
        seeds: Each draws start, sampling and training.
        width: Of the transformer's stream.
    """

    folder: Path | None = None
    tokens: str = "bytes"
    windows: int = 512
    sampled: int = 10
    rounds: int = 100
    epochs: tuple[int, ...] = (1, 4, 8)
    server_rate: float = 0.0
    tuned_epochs: int = 3
    seeds: int = 3
    width: int = 64


QUICK = {"windows": 128, "rounds": 30, "epochs": (1, 4), "seeds": 1, "width": 48}


@cache
def text(folder: str | None, tokens: str) -> data.TextData:
    """The clients."""
    documents = data.standard_library() if folder is None else data.text_folder(folder)
    return data.text_clients(documents, tokens=tokens, length=LENGTH)


def some_of(x: Any, y: Any, parts: Sequence[np.ndarray], which: np.ndarray, limit: int) -> Cohort:
    """Clients with at most `limit` windows each."""
    return cohort(x, y, [parts[i][:limit] for i in which], length=limit)


@cache
def network_of(vocab: int, width: int) -> models.Network:
    """One object per setting, so that it is traced once."""
    return models.build_transformer(vocab, LENGTH, width=width)


@cache
def federation_of(method: str, network: models.Network, epochs: int, sampled: int, server_rate: float) -> Federation:
    """The federation's settings."""
    training = LocalTraining(network.apply, categorical(), LOCAL, epochs, BATCH)
    rule = (fedavg if method == "fedavg" else fedfish)(network.apply, categorical())
    return Federation(training, rule, sampled, optax.adam(server_rate) if server_rate else None, barrier=True)


def run(
    method: str,
    epochs: int,
    seed: int,
    folder: str | None,
    tokens: str,
    windows: int,
    sampled: int,
    num_rounds: int,
    server_rate: float,
    tuned_epochs: int,
    width: int,
) -> dict[str, Any]:
    """Pre-training, and personalisation of the other half."""
    found = text(folder, tokens)
    x, y = jnp.asarray(found.x), jnp.asarray(found.y)
    network = network_of(found.vocabulary.size, width)
    federation = federation_of(method, network, epochs, sampled, server_rate)
    who = some_of(x, y, found.train, found.pretrain, windows)
    tested = np.concatenate([found.test[i][: windows // 4] for i in found.pretrain])
    init_key, key, tune_key = jax.random.split(jax.random.key(seed), 3)
    state = rounds.init(federation, network.init(init_key), len(who.sizes), key)
    result: dict[str, Any] = {"accuracy": [], "barrier_loss": [], "barrier_accuracy": []}
    for number in range(1, num_rounds + 1):
        state, report = rounds.step(federation, state, who)
        for name in ("barrier_loss", "barrier_accuracy"):
            result[name].append(float(getattr(report, name)))
        if number % 10 == 0 or number == num_rounds:
            scored = evaluate(network.apply, categorical(), state.params, x[tested], y[tested], batch_size=64)
            result["accuracy"].append([number, float(scored.accuracy)])
    mine = some_of(x, y, found.train, found.personal, windows)
    theirs = some_of(x, y, found.test, found.personal, windows // 4)
    tuning = LocalTraining(network.apply, categorical(), LOCAL, tuned_epochs, BATCH)
    for name, shots in (("all", None), ("few", SHOTS)):
        scores = personalise(tuning, state.params, mine, theirs, tune_key, shots=shots)
        result[f"before_{name}"] = float(jnp.mean(scores.accuracy_before))
        result[f"after_{name}"] = float(jnp.mean(scores.accuracy))
    return result


def baselines(folder: str | None, tokens: str, windows: int) -> dict[str, list[float]]:
    """Accuracy of unigram and bigram, counted on the pre-training clients' text, on both halves' test windows."""
    found = text(folder, tokens)
    x, y, vocab = found.x, found.y, found.vocabulary.size
    seen = np.concatenate([found.train[i][:windows] for i in found.pretrain])
    result = {}
    for name, params, apply in (
        ("unigram", ngram.fit_unigram(y[seen], vocab), ngram.unigram),
        ("bigram", ngram.fit_bigram(x[seen], y[seen], vocab), ngram.bigram),
    ):
        halves = []
        for half in (found.pretrain, found.personal):
            each = [found.test[i][: windows // 4] for i in half]
            rows = np.concatenate(each)
            if half is found.pretrain:  # as the network: over windows
                scored = evaluate(
                    apply, categorical(), params, jnp.asarray(x[rows]), jnp.asarray(y[rows]), batch_size=64
                )
                halves.append(float(scored.accuracy))
                continue
            guess = np.asarray(jnp.argmax(params, axis=-1))
            right = [np.mean((guess[x[r]] if name == "bigram" else guess) == y[r]) for r in each]
            halves.append(float(np.mean(right)))  # as personalisation: over clients
        result[name] = halves
    return result


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    names = ("tokens", "windows", "sampled", "server_rate", "tuned_epochs", "width")
    fixed = {name: getattr(settings, name) for name in names} | {"num_rounds": settings.rounds}
    fixed["folder"] = None if settings.folder is None else str(settings.folder)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = [{"method": m, "epochs": e, "seed": s, **fixed} for s in seeds for e in settings.epochs for m in METHODS]
    records = common.run_all(settings.out, grid, run)
    counted = baselines(fixed["folder"], settings.tokens, settings.windows)

    def percent(name: str, **where: Any) -> np.ndarray:
        return 100 * common.column(records, name, **where)

    columns = {
        "pre-training half": lambda **w: percent("accuracy", **w)[:, -1, 1],
        "barrier, loss": lambda **w: common.column(records, "barrier_loss", **w).mean(1),
        "barrier, accuracy (%)": lambda **w: percent("barrier_accuracy", **w).mean(1),
        "other half, before": lambda **w: percent("before_all", **w),
        "tuned": lambda **w: percent("after_all", **w),
        f"tuned, {SHOTS} windows": lambda **w: percent("after_few", **w),
    }
    rows = []
    for epochs in settings.epochs:
        for method, label in METHODS.items():
            values = [common.mean_std(get(method=method, epochs=epochs), 2) for get in columns.values()]
            rows.append([f"{label}, {epochs} epochs", *values])
        both = [[get(method=m, epochs=epochs) for m in METHODS] for get in columns.values()]
        rows.append([f"FedFish − FedAvg, {epochs}", *[common.mean_std(fish - plain, 2) for plain, fish in both]])
    for name, (first, other) in counted.items():
        rows.append([name, f"{100 * first:.2f}", "", "", f"{100 * other:.2f}", "", ""])
    found = text(fixed["folder"], settings.tokens)
    note = (
        f"Next-token accuracy in %; {len(found.pretrain)} clients pre-train, {len(found.personal)} personalise; "
        f"{settings.rounds} rounds, {settings.sampled} clients each; mean"
        + (f" ± std over {settings.seeds} seeds" if settings.seeds > 1 else " of one seed")
        + ". Barriers: means over all rounds, summed over an example's positions, lower is better.\n\n"
    )
    fig, axes = common.figure(1, 2)
    for method, colour in zip(METHODS, common.COLOURS, strict=False):
        for epochs, style in zip(settings.epochs, ("-", "--", ":", "-."), strict=False):
            curve = common.column(records, "accuracy", method=method, epochs=epochs).mean(0)
            label = f"{METHODS[method]}, {epochs} epochs"
            axes[0, 0].plot(curve[:, 0], 100 * curve[:, 1], style, color=colour, marker="o", label=label)
        points = [
            [columns[c](method=method, epochs=e).mean() for c in ("other half, before", "tuned")]
            for e in settings.epochs
        ]
        for part, style in zip(range(2), ("--", "-"), strict=True):
            label = f"{METHODS[method]}, {('before', 'tuned')[part]}"
            axes[0, 1].plot(settings.epochs, [p[part] for p in points], style, marker="o", color=colour, label=label)
    for name, style in (("bigram", ":"), ("unigram", "-.")):
        for axis, half in zip(axes[0], range(2), strict=True):
            axis.axhline(100 * counted[name][half], color="black", linestyle=style, linewidth=0.8, label=name)
    axes[0, 0].set(xlabel="rounds", ylabel="accuracy (%)", title="half that pre-trains")
    axes[0, 1].set(xlabel="local epochs", title="half that personalises", xticks=settings.epochs)
    for axis in axes[0]:
        axis.legend()
    summary = {
        "accuracy": {
            m: {str(e): columns["pre-training half"](method=m, epochs=e).mean() for e in settings.epochs}
            for m in METHODS
        },
        "tuned": {m: {str(e): columns["tuned"](method=m, epochs=e).mean() for e in settings.epochs} for m in METHODS},
        **counted,
    }
    common.report(settings.out, note + common.markdown_table(["", *columns], rows), summary, fig)


if __name__ == "__main__":
    main()

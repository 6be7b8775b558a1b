"""Next-token prediction: federated pre-training on half of the clients, personalisation on the others (2311.10291).

Clients are kinds of text (code, markup, manuals, tables), Python's standard library, a group of modules each, or any
folder of text files. The paper goes from C4 to Stack Overflow; here from one half of the clients to the other, few-shot
too. The rate of personalisation is the one that is best for clients of the first half.
"""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.fedfish import ngram
from experiments.fedfish.kinds import kinds
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
from fedfisher_jax.federate import server_adam
from fedfisher_jax.merge import catalogue

LENGTH, BATCH, SHOTS = 64, 16, 16
NAMES = {
    "fedavg": "FedAvg",
    "fedfish,estimator=monte_carlo": "FedFish",
    "fedfish,estimator=squares": "FedFish, squares",
}
CLIENTS = {"sgd": optax.sgd, "adam": optax.adam}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        clients: kinds of text (`experiments.fedfish.kinds`), or the library's modules.
        folder: A folder of text files, one file or sub-folder a client, in their place.
        tokens: bytes or characters.
        windows: Training windows of a client in a round's training, at most; its first ones.
        sampled: Clients in a round.
        rounds: Rounds of pre-training.
        epochs: Numbers of local epochs to compare.
        rules: FedAvg, and what is compared with it. The exact Fisher has a column for each byte of a window and each
            value of it, so draws of Monte-Carlo estimate it.
        local: The clients' optimisers to compare: sgd-RATE or adam-RATE.
        server: The server's optimiser: plain, sgd-RATE, sgd-RATE-MOMENTUM or adam-RATE.
        network: transformer, or ngram: one hidden layer on the last four tokens.
        tuned_epochs: Epochs of personalisation.
        tuned: Factors on the local rate that are tried for personalisation.
        seeds: Each draws start, sampling and training.
        width: The width of the network's stream or embedding.
    """

    clients: Literal["kinds", "library"] = "kinds"
    folder: Path | None = None
    tokens: str = "bytes"
    windows: int = 256
    sampled: int = 10
    rounds: int = 25
    epochs: tuple[int, ...] = (8,)
    rules: tuple[str, ...] = ("fedavg", "fedfish,estimator=monte_carlo")
    local: tuple[str, ...] = ("sgd-0.01", "adam-0.002")
    server: str = "adam-0.01"
    network: Literal["transformer", "ngram"] = "transformer"
    tuned_epochs: int = 3
    tuned: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    seeds: int = 3
    width: int = 64


QUICK = {"windows": 64, "rounds": 4, "epochs": (2,), "seeds": 1, "width": 16, "network": "ngram", "tuned": (0.1, 1.0)}


@cache
def text(clients: str, folder: str | None, tokens: str) -> data.TextData:
    """The clients."""
    made = kinds if clients == "kinds" else data.standard_library
    documents = made() if folder is None else data.text_folder(folder)
    return data.text_clients(documents, tokens=tokens, length=LENGTH)


def some_of(x: Any, y: Any, parts: Sequence[np.ndarray], which: np.ndarray, limit: int) -> Cohort:
    """Clients with at most `limit` windows each."""
    return cohort(x, y, [parts[i][:limit] for i in which], length=limit)


@cache
def network_of(name: str, vocab: int, width: int) -> models.Network:
    """One object per setting, so that it is traced once."""
    return ngram.network(vocab, width) if name == "ngram" else models.build_transformer(vocab, LENGTH, width=width)


@cache
def training_of(local: str, network: models.Network, epochs: int, factor: float = 1.0) -> LocalTraining:
    """Training at a client, with its rate times a factor.

    Raises:
        ValueError: unknown optimiser.
    """
    kind, _, rate = local.partition("-")
    if kind not in CLIENTS:
        raise ValueError(f"local: got {local!r}, expected sgd-RATE or adam-RATE")
    return LocalTraining(network.apply, categorical(), CLIENTS[kind](factor * float(rate)), epochs, BATCH)


def optimizer_of(name: str) -> optax.GradientTransformation | None:
    """A server optimiser: "plain" takes the merged model, "sgd-0.25" and "adam-0.01" are of a rate.

    "sgd-1-0.5" has momentum 0.5; "adam" is `server_adam`, of b1 0.5 and b2 0.99.

    Raises:
        ValueError: another name.
    """
    kind, *numbers = name.split("-")
    if kind == "plain" and not numbers:
        return None
    made = {("sgd", 1): optax.sgd, ("sgd", 2): optax.sgd, ("adam", 1): server_adam}.get((kind, len(numbers)))
    if made is None:
        raise ValueError(f"server: got {name!r}, expected plain, sgd-RATE, sgd-RATE-MOMENTUM or adam-RATE")
    return made(*map(float, numbers))


@cache
def federation_of(rule: str, network: models.Network, local: str, epochs: int, sampled: int, server: str) -> Federation:
    """The federation's settings."""
    named = catalogue.named_rule(rule, network.apply, categorical())
    training = training_of(local, network, epochs)
    return Federation(training, named, sampled, optimizer_of(server), barrier=True)


def best_factor(tried: Sequence[float], score: Any) -> float:
    """The factor of the least loss; a loss that is not finite is none."""
    losses = [float(jnp.mean(score(factor).loss)) for factor in tried]
    return tried[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]


def run(rule: str, epochs: int, seed: int, local: str, **fixed: Any) -> dict[str, Any]:
    """Pre-training, and personalisation of the other half."""
    windows, num_rounds = fixed["windows"], fixed["num_rounds"]
    found = text(fixed["clients"], fixed["folder"], fixed["tokens"])
    x, y = jnp.asarray(found.x), jnp.asarray(found.y)
    network = network_of(fixed["network"], found.vocabulary.size, fixed["width"])
    federation = federation_of(rule, network, local, epochs, fixed["sampled"], fixed["server"])
    who = some_of(x, y, found.train, found.pretrain, windows)
    tested = np.concatenate([found.test[i][: windows // 4] for i in found.pretrain])
    init_key, key, tune_key = jax.random.split(jax.random.key(seed), 3)
    state = rounds.init(federation, network.init(init_key), len(who.sizes), key)
    result: dict[str, Any] = {"accuracy": [], "perplexity": [], "barrier_loss": [], "barrier_accuracy": []}
    for number in range(1, num_rounds + 1):
        state, report = rounds.step(federation, state, who)
        for name in ("barrier_loss", "barrier_accuracy"):
            result[name].append(float(getattr(report, name)))
        if number % 5 == 0 or number == num_rounds:
            scored = evaluate(network.apply, categorical(), state.params, x[tested], y[tested], batch_size=64)
            result["accuracy"].append([number, float(scored.accuracy)])
            result["perplexity"].append([number, float(np.exp(scored.loss / LENGTH))])
    known = some_of(x, y, found.test, found.pretrain, windows // 4)
    mine = some_of(x, y, found.train, found.personal, windows)
    theirs = some_of(x, y, found.test, found.personal, windows // 4)

    def tuned(factor: float, train: Cohort, test: Cohort, shots: int | None) -> Any:
        training = training_of(local, network, fixed["tuned_epochs"], factor)
        return personalise(training, state.params, train, test, tune_key, shots=shots)

    for name, shots in (("all", None), ("few", SHOTS)):
        factor = best_factor(fixed["tuned"], lambda one, shots=shots: tuned(one, who, known, shots))
        scores = tuned(factor, mine, theirs, shots)
        for when, loss, accuracy in (
            ("before", scores.loss_before, scores.accuracy_before),
            ("after", scores.loss, scores.accuracy),
        ):
            result[f"{when}_{name}"] = float(jnp.mean(accuracy))
            result[f"perplexity_{when}_{name}"] = float(jnp.exp(jnp.mean(loss) / LENGTH))
        result[f"factor_{name}"] = factor
    return result


def baselines(clients: str, folder: str | None, tokens: str, windows: int) -> dict[str, list[float]]:
    """Accuracy of unigram and bigram, counted on the pre-training clients' text, on both halves' test windows."""
    found = text(clients, folder, tokens)
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
    names = ("clients", "tokens", "windows", "sampled", "server", "network", "tuned_epochs", "tuned", "width")
    fixed = {name: getattr(settings, name) for name in names} | {"num_rounds": settings.rounds}
    fixed["folder"] = None if settings.folder is None else str(settings.folder)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    pairs = [(local, epochs) for local in settings.local for epochs in settings.epochs]
    grid = [
        {"rule": rule, "local": local, "epochs": epochs, "seed": seed, **fixed}
        for seed in seeds
        for local, epochs in pairs
        for rule in settings.rules
    ]
    records = common.run_all(settings.out, grid, run)
    counted = baselines(settings.clients, fixed["folder"], settings.tokens, settings.windows)

    def percent(name: str, **where: Any) -> np.ndarray:
        return 100 * common.column(records, name, **where)

    columns = {
        "perplexity": lambda **w: common.column(records, "perplexity", **w)[:, -1, 1],
        "accuracy (%)": lambda **w: percent("accuracy", **w)[:, -1, 1],
        "barrier, loss": lambda **w: common.column(records, "barrier_loss", **w).mean(1),
        "other half: perplexity": lambda **w: common.column(records, "perplexity_before_all", **w),
        "tuned": lambda **w: common.column(records, "perplexity_after_all", **w),
        f"tuned, {SHOTS} windows": lambda **w: common.column(records, "perplexity_after_few", **w),
        "tuned: accuracy (%)": lambda **w: percent("after_all", **w),
    }
    base, *others = settings.rules
    rows, summary = [], {"seeds": settings.seeds, "gain_in_log_perplexity": {}, **counted}
    for local, epochs in pairs:
        where = {"local": local, "epochs": epochs}
        for rule in settings.rules:
            values = [common.mean_std(get(rule=rule, **where), 2) for get in columns.values()]
            rows.append([f"{NAMES.get(rule, rule)}, {local}, {epochs} epochs", *values])
        for rule in others:
            mine, theirs = ([get(rule=r, **where) for get in columns.values()] for r in (rule, base))
            gaps = [common.mean_std(a - b, 2) for a, b in zip(mine, theirs, strict=True)]
            rows.append([f"{NAMES.get(rule, rule)} − {NAMES.get(base, base)}, {local}, {epochs}", *gaps])
            gains = summary["gain_in_log_perplexity"].setdefault(f"{local}, {epochs} epochs", {})
            gains[rule] = float(np.mean(np.log(theirs[0]) - np.log(mine[0])))
    for name, (first, other) in counted.items():
        rows.append([name, "", f"{100 * first:.2f}", "", "", "", "", f"{100 * other:.2f}"])
    found = text(settings.clients, fixed["folder"], settings.tokens)
    note = (
        f"Next {settings.tokens} of {settings.clients if settings.folder is None else 'a folder'}, {settings.network} "
        f"of width {settings.width}, {settings.windows} windows of {LENGTH} a client; {len(found.pretrain)} clients "
        f"pre-train, {len(found.personal)} personalise; {settings.rounds} rounds, {settings.sampled} clients each, "
        f"server {settings.server}; mean"
        + (f" ± std over {settings.seeds} seeds" if settings.seeds > 1 else " of one seed")
        + ". Perplexity of a token on the pre-training half's test windows, lower is better, then of the other half's, "
        "before and after fine-tuning on all their windows or few. Barriers: means over all rounds, summed over an "
        "example's positions, lower is better. Unigram and bigram: accuracy of counts.\n\n"
    )
    fig, axes = common.figure(1, 2)
    for number, (local, epochs) in enumerate(pairs):
        style = ("-", "--", ":", "-.")[number % 4]
        for rule, colour in common.rule_colours(settings.rules).items():
            where = {"rule": rule, "local": local, "epochs": epochs}
            curve = common.column(records, "perplexity", **where).mean(0)
            label = f"{NAMES.get(rule, rule)}, {local}, {epochs}"
            axes[0, 0].plot(curve[:, 0], curve[:, 1], style, color=colour, marker="o", label=label)
            steps = [columns[name](**where).mean() for name in list(columns)[3:6]]
            axes[0, 1].plot(range(3), steps, style, color=colour, marker="o")
    axes[0, 0].set(xlabel="rounds", ylabel="perplexity", title="half that pre-trains")
    axes[0, 1].set(title="half that personalises", xticks=range(3), ylabel="perplexity")
    axes[0, 1].set_xticklabels(["before", "tuned", f"{SHOTS} windows"])
    axes[0, 0].legend(fontsize=6)
    common.report(settings.out, note + common.markdown_table(["", *columns], rows), summary, fig)


if __name__ == "__main__":
    main()

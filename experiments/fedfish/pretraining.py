"""Runs of `experiments.fedfish.language`: a federation pre-trains on half of the clients, the others are personalised.

Windows of a client's training text beyond those that it trains on are spare: a server's optimiser is chosen by them, so
that no test window is looked at before it is reported.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.fedfish import ngram
from experiments.fedfish.kinds import kinds
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
CLIENTS = {"sgd": optax.sgd, "adam": optax.adam}


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
def federation_of(
    rule: str, network: models.Network, local: str, epochs: int, sampled: int, server: str, barrier: bool
) -> Federation:
    """The federation's settings."""
    named = catalogue.named_rule(rule, network.apply, categorical())
    training = training_of(local, network, epochs)
    return Federation(training, named, sampled, optimizer_of(server), barrier=barrier)


def best_factor(tried: Sequence[float], score: Any) -> float:
    """The factor of the least loss; a loss that is not finite is none."""
    losses = [float(jnp.mean(score(factor).loss)) for factor in tried]
    return tried[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]


def spare_windows(found: data.TextData, windows: int) -> np.ndarray:
    """The training windows of the pre-training half that come after those that it trains on, a quarter as many.

    Raises:
        ValueError: no client has one.
    """
    spare = np.concatenate([found.train[i][windows : windows + windows // 4] for i in found.pretrain])
    if not len(spare):
        raise ValueError(
            f"windows: got {windows}, which leaves no client a spare one to choose a server's optimiser by"
        )
    return spare


def pretrain(
    federation: Federation, network: models.Network, num_rounds: int, seed: int, clients: Cohort, scored: np.ndarray
) -> tuple[Any, dict[str, Any]]:
    """The model after all rounds; perplexity of the windows `scored`, every fifth round, and barriers on the way."""
    init_key, key, _ = jax.random.split(jax.random.key(seed), 3)
    state = rounds.init(federation, network.init(init_key), len(clients.sizes), key)
    result: dict[str, Any] = {"accuracy": [], "perplexity": [], "barrier_loss": [], "barrier_accuracy": []}
    for number in range(1, num_rounds + 1):
        state, report = rounds.step(federation, state, clients)
        for name in ("barrier_loss", "barrier_accuracy"):
            result[name].append(float(getattr(report, name)))
        if number % 5 == 0 or number == num_rounds:
            scores = evaluate(
                network.apply, categorical(), state.params, clients.x[scored], clients.y[scored], batch_size=64
            )
            result["accuracy"].append([number, float(scores.accuracy)])
            result["perplexity"].append([number, float(np.exp(scores.loss / LENGTH))])
    return state.params, result


def run(rule: str, epochs: int, seed: int, local: str, server: str, choosing: bool, **fixed: Any) -> dict[str, Any]:
    """Pre-training, then personalisation of the other half; for a choice of servers, spare windows' scores alone."""
    windows = fixed["windows"]
    found = text(fixed["clients"], fixed["folder"], fixed["tokens"])
    x, y = jnp.asarray(found.x), jnp.asarray(found.y)
    network = network_of(fixed["network"], found.vocabulary.size, fixed["width"])
    federation = federation_of(rule, network, local, epochs, fixed["sampled"], server, not choosing)
    who = some_of(x, y, found.train, found.pretrain, windows)
    if choosing:
        return pretrain(federation, network, fixed["num_rounds"], seed, who, spare_windows(found, windows))[1]
    tested = np.concatenate([found.test[i][: windows // 4] for i in found.pretrain])
    params, result = pretrain(federation, network, fixed["num_rounds"], seed, who, tested)
    known = some_of(x, y, found.test, found.pretrain, windows // 4)
    mine = some_of(x, y, found.train, found.personal, windows)
    theirs = some_of(x, y, found.test, found.personal, windows // 4)
    tune_key = jax.random.split(jax.random.key(seed), 3)[2]

    def tuned(factor: float, train: Cohort, test: Cohort, shots: int | None) -> Any:
        training = training_of(local, network, fixed["tuned_epochs"], factor)
        return personalise(training, params, train, test, tune_key, shots=shots)

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

"""What the scripts that fit fields share: small tanh networks, methods over rounds after a warm-up, their bits.

A problem is a function on a domain that is cut into pieces, and the pieces are dealt round-robin to clients: one
contiguous piece each is the most heterogeneous split. All seeds of a method run as one program.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib import common
from fedfisher_jax import Cohort, Federation, Likelihood, LocalTraining, Rule, cohort, rounds
from fedfisher_jax.curvature import Subspace
from fedfisher_jax.merge import PAPER_FIPA, FipaStep, fedavg, fedfish, fedfisher, fipa

PyTree = Any
BITS = 32  # of a number that is sent


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is fitted; the same object for all runs, or it is traced again.

    Attributes:
        apply: (params, x [n, ...]) → outputs, or residuals, [n, C].
        likelihood: what the outputs mean.
        draw: key → examples (x [N, ...], y [N, C]) of all clients.
        init: key → parameters.
        field: params → the function on the points where it is compared, [...].
        truth: what it should be there.
    """

    apply: Callable
    likelihood: Likelihood
    draw: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    init: Callable[[jax.Array], PyTree]
    field: Callable[[PyTree], jax.Array]
    truth: Callable[[], np.ndarray]


class Schedule(NamedTuple):
    """Rounds, and what clients do in one: `epochs` of Adam."""

    rounds: int
    warm_up: int
    epochs: int
    batch_size: int
    learning_rate: float


class Method(NamedTuple):
    """A rule, the numbers that it sends for d parameters, and how it is used.

    `warm` says whether it begins with rounds of FedAvg; `lengths` are the multiples of the server's step of which the
    clients' mean loss chooses, a number each.
    """

    label: str
    rule: Callable[[Callable, Likelihood], Rule]
    numbers: Callable[[int], int]
    warm: bool = False
    lengths: tuple[float, ...] = ()


LEAST = 5  # the smallest rank of the clipped form
LENGTHS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0)  # of a line search


def low_rank_numbers(rank: int) -> Callable[[int], int]:
    """D + r (d + 1): a model or step, r vectors, r values."""
    return lambda d: d + min(rank, d) * (d + 1)


def _fipa(rank: int, label: str, **options: Any) -> Method:
    """FIPA, whose clients measure on all their examples at once."""
    return Method(
        label,
        lambda apply, likelihood: fipa(apply, likelihood, rank=rank, batch_size=256, **options),
        low_rank_numbers(rank),
        True,
    )


def _fedfisher(apply: Callable, likelihood: Likelihood) -> Rule:
    return fedfisher(apply, likelihood, structure="low_rank", subspace=Subspace(10), batch_size=256)


def methods(ranks: Sequence[int], tau: float) -> dict[str, Method]:
    """All that is compared; FIPA as derived (nothing moves outside of the span), damped by τ, and then clipped, too."""
    found = {
        "fedavg": Method("FedAvg", fedavg, lambda d: d),
        "fedfisher": Method("FedFisher, rank 10", _fedfisher, low_rank_numbers(10)),
        "fedfish": Method("FedFish", fedfish, lambda d: 2 * d),
    }
    found |= {f"fipa-{r}": _fipa(r, f"FIPA, rank {r}", step=PAPER_FIPA) for r in ranks}
    found |= {
        f"fipa-{r}-damped": _fipa(r, f"FIPA, rank {r}, damped", step=FipaStep(tau=tau, clip=None))
        for r in (ranks[-2], ranks[-1])
    }
    found |= {
        f"fipa-{r}-clipped": _fipa(r, f"FIPA, rank {r}, damped and clipped", step=FipaStep(tau=tau))
        for r in ranks
        if r >= LEAST
    }
    return found


SEARCHED = "-searched"


def method_of(known: Mapping[str, Method], name: str) -> Method:
    """A method by its name, or by that and "-searched" the same with a line search by the server."""
    return _searched(known[name.removesuffix(SEARCHED)]) if name.endswith(SEARCHED) else known[name]


@cache
def _searched(method: Method) -> Method:
    send = method.numbers
    return method._replace(
        label=f"{method.label}, line search", numbers=lambda d: send(d) + len(LENGTHS), lengths=LENGTHS
    )


def init(widths: Sequence[int], key: jax.Array) -> list[dict[str, jax.Array]]:
    """Normal weights of variance 2 / (inputs + outputs), as is usual for tanh, and zero biases."""
    layers = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        key, key_w = jax.random.split(key)
        weights = (2 / (inputs + outputs)) ** 0.5 * jax.random.normal(key_w, (inputs, outputs))
        layers.append({"w": weights, "b": jnp.zeros(outputs, weights.dtype)})
    return layers


def network(params: PyTree, x: Any) -> Any:
    """Multi-layer perceptron with tanh: [..., inputs] → [..., outputs]."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def deal(size: int, clients: int, pieces: int) -> np.ndarray:
    """Places 0 … size − 1, in the order of the domain, cut into clients · pieces parts that are dealt round-robin.

    Returns:
        The clients' places, [clients, size / clients].

    Raises:
        ValueError: parts of different length, since all splits of a problem run one compiled program.
    """
    if pieces < 1 or clients < 1 or size % (clients * pieces):
        raise ValueError(f"pieces: got {pieces} for {clients} clients, expected equal parts of {size} places")
    return np.arange(size).reshape(pieces, clients, -1).swapaxes(0, 1).reshape(clients, -1)


def with_shared(places: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """The places of clients that all hold some further examples too."""
    more = np.broadcast_to(shared, (len(places), len(shared)))
    return np.concatenate([places, more], axis=1)


@cache
def federation(problem: Problem, method: Method, schedule: Schedule) -> Callable:
    """(keys [seeds], clients, whose examples a key draws) → what `follow` returns; compiled once for all splits."""
    optimizer = optax.adam(schedule.learning_rate)
    training = LocalTraining(problem.apply, problem.likelihood, optimizer, schedule.epochs, schedule.batch_size)
    average = fedavg(problem.apply, problem.likelihood)
    first = schedule.warm_up if method.warm else 0
    rule = method.rule(problem.apply, problem.likelihood)
    truth = jnp.asarray(problem.truth())

    def one_seed(key: jax.Array, who: Cohort) -> dict[str, jax.Array]:
        key_data, key_init, key_run = jax.random.split(key, 3)
        x, y = problem.draw(key_data)
        everyone, count = dataclasses.replace(who, x=x, y=y), len(who.sizes)

        def relative(params: PyTree) -> jax.Array:
            return jnp.linalg.norm(problem.field(params) - truth) / jnp.linalg.norm(truth)

        state = rounds.init(Federation(training, average, count), problem.init(key_init), count, key_run)
        found, losses = [relative(state.params)[None]], []
        for used, number in ((average, first), (rule, schedule.rounds - first)):
            here = Federation(training, used, count, lengths=method.lengths if used is rule else ())

            def one_round(state: rounds.State, _: Any, here: Federation = here) -> tuple[rounds.State, Any]:
                state, report = rounds.step(here, state, everyone, strategy="sequential")
                return state, (relative(state.params), report.loss)

            state, (error, loss) = jax.lax.scan(one_round, state, None, number)
            found, losses = [*found, error], [*losses, loss]
        return {
            "error": jnp.concatenate(found),
            "loss": jnp.concatenate(losses),
            "field": problem.field(state.params),
        }

    return jax.jit(jax.vmap(one_seed, (0, None)))


def follow(
    problem: Problem, method: Method, schedule: Schedule, places: np.ndarray, seed: int, seeds: int
) -> dict[str, Any]:
    """One method on one split.

    Returns:
        Relative l2 errors [seeds, rounds + 1], the first before any round; the clients' training losses
        [seeds, rounds]; the field of the first seed; bits that a client has sent by then [rounds + 1].
    """
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    nothing = np.zeros(places.max() + 1)  # each seed draws the examples
    who = cohort(nothing, nothing, list(places))
    found = jax.device_get(federation(problem, method, schedule)(keys, who))
    d = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(problem.init, jax.random.key(0))))
    first = schedule.warm_up if method.warm else 0
    sent = np.r_[0, np.full(first, d), np.full(schedule.rounds - first, method.numbers(d))]
    return {**found, "field": found["field"][0], "bits": BITS * np.cumsum(sent), "parameters": d}


# ---- reports ---------------------------------------------------------------------------------------------------------


def errors(records: Iterable[Mapping[str, Any]], **where: Any) -> np.ndarray:
    """[seeds, rounds + 1] of the one run with these settings; infinite where it is not a number."""
    return np.nan_to_num(common.column(records, "error", **where)[0], nan=np.inf)


def error_table(records: list[dict[str, Any]], compared: Mapping[str, Method], axis: str, values: Sequence[Any]) -> str:
    """Final errors, means with standard deviations, and on how many seeds each method beats FedAvg."""
    rows = []
    for name, method in compared.items():
        cells = []
        for value in values:
            last = errors(records, method=name, **{axis: value})[:, -1]
            plain = errors(records, method="fedavg", **{axis: value})[:, -1]
            better = "" if name == "fedavg" else f" ({(last < plain).sum()}/{len(last)})"
            spread = f" ± {last.std(ddof=1):.2g}" if len(last) > 1 else ""
            cells.append(f"{last.mean():.3g}{spread}{better}")
        bits = common.column(records, "bits", method=name, **{axis: values[0]})[0, -1]
        rows.append([method.label, *cells, f"{bits / 8e6:.2f}"])
    header = ["", *[f"{axis} {value}" for value in values], "MB up per client"]
    return common.markdown_table(header, rows)


def summary_of(
    records: list[dict[str, Any]], compared: Mapping[str, Method], axis: str, values: Sequence[Any], shown: str
) -> dict[str, Any]:
    """Headline at the most heterogeneous split, and every method's mean, spread and wins."""
    found: dict[str, Any] = {}
    for value in values:
        plain = errors(records, method="fedavg", **{axis: value})[:, -1]
        found[str(value)] = {}
        for name in compared:
            last = errors(records, method=name, **{axis: value})[:, -1]
            spread = last.std(ddof=1) if len(last) > 1 else 0.0
            wins = int((last < plain).sum())
            found[str(value)][name] = {
                "mean": last.mean(),
                "std": spread,
                "median": np.median(last),
                "seeds_better": wins,
            }
    head = found[str(values[0])]
    return {
        "error_fedavg": head["fedavg"]["mean"],
        "error_fedavg_std": head["fedavg"]["std"],
        "error_fipa": head[shown]["mean"],
        "error_fipa_std": head[shown]["std"],
        "seeds_fipa_better": head[shown]["seeds_better"],
        "seeds": len(errors(records, method="fedavg", **{axis: values[0]})),
        "of": f"{shown}, {axis} {values[0]}, relative l2 error after the last round",
        "errors": found,
    }


def worst_of(records: list[dict[str, Any]], compared: Mapping[str, Method], values: Sequence[Any]) -> dict[str, Any]:
    """The largest mean error of the clipped FIPA relative to FedAvg's, over numbers of pieces and ranks; and where."""
    ratios, wins = {}, {}
    for pieces in values:
        plain = errors(records, method="fedavg", pieces=pieces)[:, -1]
        for name in (name for name in compared if name.endswith("-clipped")):
            last = errors(records, method=name, pieces=pieces)[:, -1]
            ratios[f"{name}, pieces {pieces}"] = float(last.mean() / plain.mean())
            wins[f"{name}, pieces {pieces}"] = int((last < plain).sum())
    worst = max(ratios, key=ratios.__getitem__)
    return {"worst_ratio": ratios[worst], "worst": worst, "fewest_seeds_better": min(wins.values()), "ratios": ratios}


def style_of(name: str, compared: Mapping[str, Method]) -> dict[str, str]:
    """A line's colour, and dashes or dots for a damped or clipped method, in the colour of the one without."""
    dashes = {"damped": "--", "clipped": ":"}
    base, _, form = name.rpartition("-")
    plain = [one for one in compared if one.rpartition("-")[2] not in dashes]
    ranks = {one: one.replace("fipa-", "fipa,rank=") for one in plain}
    own = common.rule_colours(plain, ranks)
    return {"color": own[base if form in dashes else name], "linestyle": dashes.get(form, "-")}


def draw_errors(axes: Sequence[Any], records: list[dict[str, Any]], compared: Mapping[str, Method], **where: Any):
    """Median error over seeds against rounds (first axis) and against bits (second)."""
    for name, method in compared.items():
        found = np.median(errors(records, method=name, **where), axis=0)
        bits = common.column(records, "bits", method=name, **where)[0]
        style = {**style_of(name, compared), "label": method.label}
        axes[0].plot(found, **style)
        if len(axes) > 1:
            axes[1].plot(bits[1:] / 8e6, found[1:], **style)
    axes[0].set(xlabel="rounds", ylabel="relative l2 error, median", yscale="log")
    if len(axes) > 1:
        axes[1].set(xlabel="MB sent by a client", xscale="log", yscale="log")

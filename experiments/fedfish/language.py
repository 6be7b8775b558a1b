"""Next-token prediction: federated pre-training on half of the clients, personalisation on the others (2311.10291).

Clients are kinds of text (code, markup, manuals, tables), Python's standard library, a group of modules each, or any
folder of text files. The paper goes from C4 to Stack Overflow; here from one half of the clients to the other, few-shot
too. The server's optimiser is chosen for each rule and each optimiser of the clients, on tuning seeds by spare windows
of the first half; the rate of personalisation is the one that is best for clients of the first half.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.fedfish.pretraining import LENGTH, SHOTS, baselines, run, text
from experiments.lib import common
from experiments.lib.gains import paired

NAMES = {
    "fedavg": "FedAvg",
    "fedfish,estimator=monte_carlo": "FedFish",
    "fedfish,estimator=squares": "FedFish, squares",
}


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
        servers: The server's optimisers to choose from: plain, sgd-RATE, sgd-RATE-MOMENTUM or adam-RATE.
        tuning: Tuning seeds, on which a server's optimiser is chosen where there are several.
        tuning_seed: The first of them.
        network: transformer, or ngram: one hidden layer on the last four tokens.
        tuned_epochs: Epochs of personalisation.
        tuned: Factors on the local rate that are tried for personalisation.
        seeds: Seeds that are reported; each draws start, sampling and training.
        width: The width of the network's stream or embedding.
    """

    clients: Literal["kinds", "library"] = "kinds"
    folder: Path | None = None
    tokens: str = "bytes"
    windows: int = 128
    sampled: int = 10
    rounds: int = 25
    epochs: tuple[int, ...] = (8,)
    rules: tuple[str, ...] = ("fedavg", "fedfish,estimator=monte_carlo")
    local: tuple[str, ...] = ("sgd-0.01", "adam-0.002")
    servers: tuple[str, ...] = ("plain", "adam-0.003", "adam-0.01", "adam-0.03")
    tuning: int = 1
    tuning_seed: int = 20
    network: Literal["transformer", "ngram"] = "transformer"
    tuned_epochs: int = 3
    tuned: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    seeds: int = 3
    width: int = 64


QUICK = {"windows": 64, "rounds": 4, "epochs": (2,), "seeds": 1, "width": 16, "network": "ngram", "tuned": (0.1, 1.0)}
QUICK |= {"servers": ("adam-0.01",)}


def grid(settings: Settings, rule: str, local: str, epochs: int, servers: Iterable[str], choosing: bool) -> list[Any]:
    """One rule's runs, on the tuning seeds or on those that are reported."""
    names = ("clients", "tokens", "windows", "sampled", "network", "tuned_epochs", "tuned", "width")
    fixed = {name: getattr(settings, name) for name in names} | {"num_rounds": settings.rounds, "choosing": choosing}
    fixed["folder"] = None if settings.folder is None else str(settings.folder)
    first, count = (settings.tuning_seed, settings.tuning) if choosing else (settings.seed, settings.seeds)
    case = {"rule": rule, "local": local, "epochs": epochs, **fixed}
    return [case | {"server": server, "seed": seed} for server in servers for seed in range(first, first + count)]


def chosen_server(settings: Settings, rule: str, local: str, epochs: int) -> tuple[str, dict[str, float]]:
    """The server's optimiser of the least perplexity of spare windows on the tuning seeds, and that of each.

    Perplexities are geometric means over the seeds; where there is only one optimiser, it is not run.
    """
    if len(settings.servers) == 1:
        return settings.servers[0], {}
    tried = grid(settings, rule, local, epochs, settings.servers, True)
    records = common.run_all(settings.out, tried, run, f"{rule}, {local}: tuning")
    scores = {}
    for server in settings.servers:
        last = np.log(common.column(records, "perplexity", server=server)[:, -1, 1])
        scores[server] = float(np.exp(np.where(np.isfinite(last), last, np.inf).mean()))
    return min(scores, key=scores.__getitem__), scores


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    overlap = (
        settings.tuning_seed < settings.seed + settings.seeds and settings.seed < settings.tuning_seed + settings.tuning
    )
    if overlap and len(settings.servers) > 1:
        raise ValueError(f"tuning_seed: got {settings.tuning_seed}, expected seeds that are not reported")
    pairs = [(local, epochs) for local in settings.local for epochs in settings.epochs]
    records: list[dict[str, Any]] = []
    servers: dict[tuple[str, str, int], str] = {}
    searched: dict[str, dict[str, float]] = {}
    for local, epochs in pairs:
        for rule in settings.rules:
            case = (rule, local, epochs)
            servers[case], searched[", ".join(map(str, case))] = chosen_server(settings, *case)
            reported = grid(settings, *case, [servers[case]], False)
            records += common.run_all(settings.out, reported, run, f"{rule}, {local}")
    folder = None if settings.folder is None else str(settings.folder)
    counted = baselines(settings.clients, folder, settings.tokens, settings.windows)

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
    rows, summary = [], {"seeds": settings.seeds, "gain_in_log_perplexity": {}, "searched": searched, **counted}
    for local, epochs in pairs:
        where = {"local": local, "epochs": epochs}
        for rule in settings.rules:
            values = [common.mean_std(get(rule=rule, **where), 2) for get in columns.values()]
            server = servers[rule, local, epochs]
            rows.append([f"{NAMES.get(rule, rule)}, {local}, {epochs} epochs, server {server}", *values])
        for rule in others:
            mine, theirs = ([get(rule=r, **where) for get in columns.values()] for r in (rule, base))
            gaps = [common.mean_std(a - b, 2) for a, b in zip(mine, theirs, strict=True)]
            rows.append([f"{NAMES.get(rule, rule)} − {NAMES.get(base, base)}, {local}, {epochs}", *gaps])
            gains = summary["gain_in_log_perplexity"].setdefault(f"{local}, {epochs} epochs", {})
            gains[rule] = paired(np.log(theirs[0]), np.log(mine[0]))
    for name, (first, other) in counted.items():
        rows.append([name, "", f"{100 * first:.2f}", "", "", "", "", f"{100 * other:.2f}"])
    found = text(settings.clients, folder, settings.tokens)
    note = (
        f"Next {settings.tokens} of {settings.clients if settings.folder is None else 'a folder'}, {settings.network} "
        f"of width {settings.width}, {settings.windows} windows of {LENGTH} a client; {len(found.pretrain)} clients "
        f"pre-train, {len(found.personal)} personalise; {settings.rounds} rounds, {settings.sampled} clients each; mean"
        + (f" ± std over {settings.seeds} seeds" if settings.seeds > 1 else " of one seed")
        + ". Perplexity of a token on the pre-training half's test windows, lower is better, then of the other half's, "
        "before and after fine-tuning on all their windows or few. Barriers: means over all rounds, summed over an "
        "example's positions, lower is better. Unigram and bigram: accuracy of counts.\n\n"
    )
    if any(searched.values()):
        told = [[case, *[f"{v:.2f}" for v in found.values()]] for case, found in searched.items()]
        rows_of_search = common.markdown_table(["", *settings.servers], told)
        after = f"\nPerplexity of spare windows by the server's optimiser, {settings.tuning} tuning seed(s):\n\n"
        after += rows_of_search
    else:
        after = ""
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
    common.report(settings.out, note + common.markdown_table(["", *columns], rows) + after, summary, fig)


if __name__ == "__main__":
    main()

"""What a client must send: test accuracy of the merged model against the size of the payload files, for every rule.

Bits are those of whole files, headers included, relative to 32 bits per parameter. "budget" is `payload.plan.fit`,
"authors" the released scheme (arXiv 2403.12329). Clients: digits, trained here; and the five Fashion-MNIST clients
of the authors' own run (tests/golden), measured here.
"""

import dataclasses
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from fedfisher_jax import data, models, payload, simulate
from fedfisher_jax.merge import catalogue
from fedfisher_jax.models import torch_layout
from fedfisher_jax.payload import file, plan

RULES = ("fedavg", "fisher-merge", "fedfisher-diag", "regmean-kron", "fedfisher-kfac")
BUDGETS = (4.0, 2.0, 1.0, 0.75, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
CLIENTS, GOLDEN = 5, common.ROOT / "tests" / "golden" / "fashion_mnist_lenet_a0.1_s0.npz"
TITLES = {"digits": "digits, MLP, {} seeds", "golden": "Fashion-MNIST, LeNet, the authors' clients"}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Seeds of digits.
        sources: Of digits, golden.
    """

    seeds: int = 5
    sources: tuple[str, ...] = ("digits", "golden")


def digits(seed: int) -> tuple[Any, ...]:
    """Apply, start, five trained models [5, ...], the data and who has which."""
    dataset = data.load("digits")
    parts = data.split("dirichlet-client", dataset.train_y, CLIENTS, seed=seed, alpha=0.1)
    network = models.build("mlp", dataset.train_x.shape[1:], dataset.num_classes)
    init_key, train_key = jax.random.split(jax.random.key(seed))
    start, who = network.init(init_key), simulate.clients(parts)
    train = simulate.Train(network.apply, ff.categorical(), optax.sgd(0.01, 0.9), 30, 64)
    x, y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)
    trained, _ = simulate.train_clients(train, start, x, y, who, train_key)
    return network.apply, start, trained.params, dataset, who


def golden(seed: int) -> tuple[Any, ...]:
    """The same for the authors' clients."""
    del seed
    dataset, network = data.load("fashion_mnist"), models.build("lenet", (28, 28, 1), 10)
    with np.load(GOLDEN) as arrays:

        def params(prefix: str) -> Any:
            state = {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}
            return torch_layout.from_torch(jax.eval_shape(network.init, jax.random.key(0)), state)

        each = [params(f"client{i}/param/") for i in range(CLIENTS)]
        who = simulate.clients([arrays[f"client{i}/idx"] for i in range(CLIENTS)])
        return network.apply, params("init/"), jax.tree.map(lambda *x: jnp.stack(x), *each), dataset, who


def run(source: str, seed: int, budgets: list[float]) -> dict[str, Any]:
    """Every rule with every scheme on one set of clients."""
    apply, start, trained, dataset, who = {"digits": digits, "golden": golden}[source](seed)
    likelihood, fingerprint = ff.categorical(), payload.fingerprint(start)
    x, y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)
    test_x, test_y = jnp.asarray(dataset.test_x), jnp.asarray(dataset.test_y)
    score = jax.jit(lambda params: ff.evaluate(apply, likelihood, params, test_x, test_y).accuracy)
    captured = ff.capture(apply, start, x)
    full = 32 * sum(leaf.size for leaf in payload.leaves(start))
    measured: dict[Any, Any] = {}
    points = []
    for name in RULES:
        rule = catalogue.build(name, apply, likelihood, offers={"captured": captured})
        if rule.measure not in measured:
            measured[rule.measure] = simulate.measure_clients(rule.measure, trained, x, y, who, jax.random.key(seed))[0]
        sent = [jax.tree.map(lambda leaf, i=i: leaf[i], measured[rule.measure]) for i in range(CLIENTS)]
        for scheme in ["none", "authors", *budgets]:
            about = [payload.About(name, likelihood.name, fingerprint, silo=i) for i in range(CLIENTS)]
            try:
                files = [payload.dumps(p, a, _plan(p, a, scheme)) for p, a in zip(sent, about, strict=True)]
            except ValueError as error:
                if "at least" not in str(error):
                    raise
                continue  # the budget is below the smallest file of this rule
            received = [payload.loads(content, start, layers=captured.layers)[0] for content in files]
            merged = simulate.merge_clients(rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *received))
            ratio = max(8 * len(content) / full for content in files)
            points.append(
                {"rule": name, "scheme": scheme, "bits": ratio, "accuracy": 100 * float(score(merged.params))}
            )
    return {"points": points, "parameters": full // 32}


def _plan(sent: Any, about: payload.About, scheme: str | float) -> file.Plan:
    if scheme == "none":
        return plan.none(sent)
    return plan.authors(sent) if scheme == "authors" else plan.fit(sent, about, float(scheme))


def curves(records: list[dict[str, Any]]) -> dict[str, dict[str, dict[Any, np.ndarray]]]:
    """Source → rule → scheme → [(bits, accuracy)] over seeds."""
    found: dict[str, Any] = {}
    for record in records:
        for point in record["points"]:
            place = found.setdefault(record["settings"]["source"], {}).setdefault(point["rule"], {})
            place.setdefault(point["scheme"], []).append((point["bits"], point["accuracy"]))
    return {s: {r: {k: np.array(v) for k, v in by.items()} for r, by in rules.items()} for s, rules in found.items()}


def figure(found: dict[str, Any]) -> Any:
    """A panel per source: lines are budgets, crosses the authors' scheme, circles the files as they are."""
    fig, axes = common.figure(1, len(found), width=5.0, height=3.6)
    for panel, (source, rules) in zip(axes.flat, found.items(), strict=True):
        for number, (rule, schemes) in enumerate(rules.items()):
            line = np.array([np.mean(v, 0) for k, v in schemes.items() if k not in ("none", "authors")])
            style = {"color": common.COLOURS[number]}
            panel.plot(*line[np.argsort(line[:, 0])].T, label=rule, **style)
            panel.plot(*np.mean(schemes["none"], 0), marker="o", **style)
            panel.plot(*np.mean(schemes["authors"], 0), marker="x", markersize=6, **style)
        seeds = len(next(iter(next(iter(rules.values())).values())))
        panel.set(title=TITLES[source].format(seeds), xlabel="file, × 32 bits per parameter", ylabel="accuracy (%)")
        panel.set_xscale("log", base=2)
    axes.flat[0].legend(loc="lower right", fontsize=7)
    return fig


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "sources": ("digits",)})
    budgets = [1.0, 0.5, 0.25] if settings.quick else list(BUDGETS)
    grid = [
        {"source": source, "seed": seed, "budgets": budgets}
        for source in settings.sources
        for seed in range(settings.seed, settings.seed + (settings.seeds if source == "digits" else 1))
    ]
    found = curves(common.run_all(settings.out, grid, run, "clients"))
    rows = [
        [source, rule, str(scheme), f"{bits:.3f}", f"{accuracy:.2f}"]
        for source, rules in found.items()
        for rule, schemes in rules.items()
        for scheme, (bits, accuracy) in ((k, np.mean(v, 0)) for k, v in schemes.items())
    ]
    text = common.markdown_table(["clients", "rule", "scheme or budget", "bits, × FedAvg", "accuracy (%)"], rows)
    summary = {
        f"{source}: {rule}: {scheme}": {"bits": float(np.mean(v[:, 0])), "accuracy": float(np.mean(v[:, 1]))}
        for source, rules in found.items()
        for rule, schemes in rules.items()
        for scheme, v in schemes.items()
        if scheme in ("none", "authors", 1.0, 0.5)
    }
    common.report(settings.out, text, summary, figure(found))


if __name__ == "__main__":
    main()

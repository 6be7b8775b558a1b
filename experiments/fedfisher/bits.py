"""What a client must send: test accuracy of the merged model against the size of the payload files, rule by rule.

Bits are those of whole files, headers included, relative to 32 bits per parameter. "budget" is `payload.plan.fit`,
"authors" the released scheme (arXiv 2403.12329). Clients: digits, trained here; and the five Fashion-MNIST clients
of the authors' own run with the Fisher information that they measured (tests/golden), which has no low-rank and no
empirical Kronecker one. OTFusion's, PFNM's, DENSE's and FedBEns' payloads have no form in files.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from experiments.lib import common
from fedfisher_jax import data, federate, models, payload
from fedfisher_jax.merge import catalogue
from fedfisher_jax.models import torch_layout
from fedfisher_jax.payload import plan

MEASURED = ("fedavg", "fisher-merge", "fedfisher-diag", "regmean", "regmean-kron", "fedfisher-kfac")  # by the authors
RULES = (*MEASURED, "fedlpa", "fedfisher-lowrank")
BUDGETS = (4.0, 2.0, 1.0, 0.75, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
CLIENTS, GOLDEN = 5, common.ROOT / "tests" / "golden" / "fashion_mnist_lenet_a0.1_s0.npz"
TITLES = {"digits": "digits, MLP, {} seeds", "golden": "Fashion-MNIST, LeNet, the authors' clients"}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        rules: Merge rules by name, or your own as module:function; of the authors' clients only what they measured.
        seeds: Seeds of digits.
        sources: Where clients come from.
    """

    rules: tuple[str, ...] = RULES
    seeds: int = 5
    sources: tuple[Literal["digits", "golden"], ...] = ("digits", "golden")


class Federation(NamedTuple):
    """What both sources come to."""

    apply: Any
    start: Any
    captured: ff.curvature.Capture
    payloads: Callable[[ff.Rule], list[ff.Payload]]
    test: tuple[Any, Any]


@cache
def digits(seed: int) -> Federation:
    """Five clients trained and measured here."""
    dataset = data.load("digits")
    parts = data.split("dirichlet-client", dataset.train_y, CLIENTS, seed=seed, alpha=0.1)
    network, key = models.build("mlp", dataset.train_x.shape[1:], dataset.num_classes), federate.run_keys(seed)
    start, who = network.init(key.init), ff.cohort(dataset.train_x, dataset.train_y, parts)
    train = ff.LocalTraining(network.apply, ff.categorical(), optax.sgd(0.01, 0.9), 30, 64)
    trained = federate.train_clients(train, start, who, key.train)[0].params

    def payloads(rule: ff.Rule) -> list[ff.Payload]:
        sent, _ = federate.measure_clients(rule.measure, ff.Update(trained, start), who, key.measure)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], sent) for i in range(CLIENTS)]

    captured = ff.capture(network.apply, start, who.x)
    return Federation(network.apply, start, captured, payloads, (dataset.test_x, dataset.test_y))


@cache
def golden(seed: int) -> Federation:
    """The authors' models and their own Fisher information, of one run whatever the seed."""
    del seed
    dataset, network = data.load("fashion_mnist"), models.build("lenet", (28, 28, 1), 10)
    template = jax.eval_shape(network.init, jax.random.key(0))
    with np.load(GOLDEN) as file:
        arrays = {name: file[name] for name in file.files}
    names = ("conv1", "conv2", "fc1", "fc2", "fc3")
    captured = ff.capture(network.apply, template, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))
    treedef = jax.tree.structure(template)

    def params(prefix: str) -> Any:
        state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return torch_layout.from_torch(template, state)

    def inputs(client: int, name: str) -> Any:
        """Theirs of convolutions are ordered [channels, offsets], ours [offsets, channels]."""
        matrix = arrays[f"client{client}/kfac_A/{name}"]
        order = np.arange(len(matrix)).reshape(-1, 25).T.ravel() if name.startswith("conv") else slice(None)
        return jnp.asarray(matrix[order][:, order])

    def fisher(client: int, structure: str | None) -> Any:
        layers = tuple(sorted(captured.layers, key=lambda layer: layer.weight))
        if structure is None:
            return None
        if structure == "diagonal":
            state, begin = {}, 0
            for name, weight in torch_layout.to_torch(params("init/")).items():
                state[name] = arrays[f"client{client}/diag"][begin : begin + weight.size].reshape(weight.shape)
                begin += weight.size
            return ff.Diagonal(torch_layout.from_torch(template, state))
        factors = tuple(inputs(client, name) for name in names)
        if structure == "gram":
            return ff.Gram(factors, layers, tuple(leaf.shape for leaf in jax.tree.leaves(template)), treedef)
        outputs = tuple(jnp.asarray(arrays[f"client{client}/kfac_G/{name}"]) for name in names)
        return ff.Kronecker(factors, outputs, {}, layers, treedef)

    def payloads(rule: ff.Rule) -> list[ff.Payload]:
        structure = getattr(rule.measure, "structure", "gram")
        sizes = jnp.asarray(arrays["sizes"], jnp.float32)
        return [ff.Payload(sizes[i], params(f"client{i}/param/"), fisher(i, structure)) for i in range(CLIENTS)]

    return Federation(network.apply, params("init/"), captured, payloads, (dataset.test_x, dataset.test_y))


def merge(rule: ff.Rule, sent: list[ff.Payload]) -> Any:
    """The merged model, by one compiled program."""
    return federate.merge_clients(rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)).params


def run(source: str, seed: int, rule: str, budgets: list[float]) -> dict[str, Any]:
    """One rule with every scheme on one set of clients."""
    clients = {"digits": digits, "golden": golden}[source](seed)
    likelihood, fingerprint = ff.categorical(), payload.fingerprint(clients.start)
    test_x, test_y = map(jnp.asarray, clients.test)
    score = jax.jit(lambda params: ff.evaluate(clients.apply, likelihood, params, test_x, test_y).accuracy)
    full = 32 * sum(leaf.size for leaf in payload.leaves(clients.start))
    built = catalogue.named_rule(rule, clients.apply, likelihood, offers={"captured": clients.captured})
    sent, points = clients.payloads(built), []
    about = [payload.About(rule, likelihood.name, fingerprint, silo=i) for i in range(CLIENTS)]
    released = [] if isinstance(sent[0].statistics, ff.curvature.LowRank) else ["authors"]  # which knows no such Fisher
    for scheme in ["none", *released, *budgets]:
        try:
            files = [payload.dumps(p, a, _plan(p, a, scheme)) for p, a in zip(sent, about, strict=True)]
        except ValueError as error:
            if "at least" not in str(error):
                raise
            continue  # the budget is below the smallest file of this rule
        received = [payload.loads(content, clients.start, layers=clients.captured.layers)[0] for content in files]
        merged = merge(built, received)
        ratio = max(8 * len(content) / full for content in files)
        points.append({"scheme": scheme, "bits": ratio, "accuracy": 100 * float(score(merged))})
    return {"points": points, "parameters": full // 32}


def _plan(sent: Any, about: payload.About, scheme: str | float) -> payload.Plan:
    if scheme == "none":
        return plan.none(sent)
    return plan.authors(sent) if scheme == "authors" else plan.fit(sent, about, float(scheme))


def curves(records: list[dict[str, Any]]) -> dict[str, dict[str, dict[Any, np.ndarray]]]:
    """Source → rule → scheme → [(bits, accuracy)] over seeds."""
    found: dict[str, Any] = {}
    for record in records:
        for point in record["result"]["points"]:
            place = found.setdefault(record["settings"]["source"], {}).setdefault(record["settings"]["rule"], {})
            place.setdefault(point["scheme"], []).append((point["bits"], point["accuracy"]))
    return {s: {r: {k: np.array(v) for k, v in by.items()} for r, by in rules.items()} for s, rules in found.items()}


def figure(found: dict[str, Any]) -> Any:
    """A panel per source: lines are budgets, crosses the authors' scheme, circles the files as they are."""
    fig, axes = common.figure(1, len(found), width=5.0, height=3.6)
    own = common.rule_colours(rule for rules in found.values() for rule in rules)
    for panel, (source, rules) in zip(axes.flat, found.items(), strict=True):
        for rule, schemes in rules.items():
            line = np.array([np.mean(v, 0) for k, v in schemes.items() if k not in ("none", "authors")])
            style = {"color": own[rule]}
            panel.plot(*line[np.argsort(line[:, 0])].T, label=rule, **style)
            panel.plot(*np.mean(schemes["none"], 0), marker="o", **style)
            if "authors" in schemes:
                panel.plot(*np.mean(schemes["authors"], 0), marker="x", markersize=6, **style)
        seeds = len(next(iter(next(iter(rules.values())).values())))
        panel.set(title=TITLES[source].format(seeds), xlabel="file, × 32 bits per parameter", ylabel="accuracy (%)")
        panel.set_xscale("log", base=2)
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick={"seeds": 1, "sources": ("digits",)})
    budgets = [1.0, 0.5, 0.25] if settings.quick else list(BUDGETS)
    for rule in settings.rules:
        catalogue.takes(rule)  # refuses unknown ones
    seeds = {"digits": range(settings.seed, settings.seed + settings.seeds), "golden": (0,)}
    grid = [
        {"source": source, "seed": seed, "rule": rule, "budgets": budgets}
        for source in settings.sources
        for seed in seeds[source]
        for rule in settings.rules
        if source == "digits" or rule in MEASURED
    ]
    found = curves(common.run_all(settings.out, grid, run, "clients"))
    rows = [
        [source, rule, str(scheme), f"{v[:, 0].mean():.3f}", common.mean_std(v[:, 1], 2), len(v)]
        for source, rules in found.items()
        for rule, schemes in rules.items()
        for scheme, v in schemes.items()
    ]
    text = common.markdown_table(
        ["clients", "rule", "scheme or budget", "bits, × FedAvg", "accuracy (%)", "seeds"], rows
    )
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

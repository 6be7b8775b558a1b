"""Eigenvalue-corrected K-FAC (George et al., 1806.03884) in a merge: does a better Fisher make a better model?

K-FAC's eigenvalues in the basis U ⊗ W of A's and G's eigenvectors are products λ_A λ_G. EKFAC keeps the basis and puts
the gradients' second moments Λ = E[(Uᵀ ∇ W)²], ∇ [inputs, outputs], in their place: of all matrices with these
eigenvectors that is the nearest one to the Fisher. Clients: digits, trained here, five seeds, and the
FedFisher authors' five Fashion-MNIST clients. What differs between the rows is Λ alone; damping is shown, not chosen.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedfisher_jax as ff
from experiments.benchmarks import authors_run
from experiments.fedfisher import bits, layer_by_layer
from experiments.lib import common
from fedfisher_jax import data, solve
from fedfisher_jax.curvature import Kronecker, Layer

PyTree = Any
BATCH, ITERATIONS = 16, 1000
METHODS = ("kfac", "ekfac")
TITLES = {"kfac": "K-FAC", "ekfac": "EKFAC"}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        seeds: Seeds of digits.
        sources: Where clients come from.
        damping: What is added to a block, relative to its mean diagonal entry; 0.3 is the library's.
        examples: How many of each client's examples Λ is measured on, the first ones; 0 takes all.
    """

    seeds: int = 5
    sources: tuple[str, ...] = ("digits", "golden")
    damping: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    examples: int = 2000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Corrected(Kronecker):
    """Σ over a layer of (U ⊗ W) Λ (U ⊗ W)ᵀ, which acts on the layer's matrix V as U (Λ ∘ Uᵀ V W) Wᵀ."""

    name: ClassVar[str] = "ekfac"

    moments: tuple[Any, ...]  # Λ of each layer [inputs, outputs]
    bases: tuple[Any, ...]  # (U, W) of each layer

    def matvec(self, v: PyTree) -> PyTree:
        """F v."""
        leaves, result = jax.tree.leaves(v), {}
        for layer, moment, (u, w) in zip(self.layers, self.moments, self.bases, strict=True):
            result |= layer.from_matrix(u @ (moment * (u.T @ layer.to_matrix(leaves) @ w)) @ w.T)
        return jax.tree.unflatten(self.treedef, [result[n] for n in range(len(result))])

    def diagonal(self) -> PyTree:
        """Σ_ab U²_ia Λ_ab W²_jb at entry (i, j)."""
        result: dict[int, Any] = {}
        for layer, moment, (u, w) in zip(self.layers, self.moments, self.bases, strict=True):
            result |= layer.from_matrix(u**2 @ moment @ (w**2).T)
        return jax.tree.unflatten(self.treedef, [result[n] for n in range(len(result))])

    def scale(self, factor: Any) -> "Corrected":
        """F times a factor."""
        outputs = tuple(factor * g for g in self.outputs)
        return dataclasses.replace(self, outputs=outputs, moments=tuple(factor * m for m in self.moments))


def corrected(apply: Callable, params: PyTree, kronecker: Kronecker, x: jax.Array) -> Corrected:
    """Measure Λ of a model on examples x [n, ...], every label in the share that the model gives it."""
    sides = zip(kronecker.inputs, kronecker.outputs, strict=True)
    bases = tuple((jnp.linalg.eigh(a)[1], jnp.linalg.eigh(g)[1]) for a, g in sides)

    def squares(image: jax.Array) -> list[jax.Array]:
        scores = lambda p: jax.nn.log_softmax(apply(p, image[None])[0])  # noqa: E731
        shares, gradients = jnp.exp(scores(params)), jax.tree.leaves(jax.jacrev(scores)(params))
        pairs = zip(kronecker.layers, bases, strict=True)
        return [jnp.tensordot(shares, turned(layer, gradients, basis) ** 2, 1) for layer, basis in pairs]

    def turned(layer: Layer, gradients: list[jax.Array], basis: tuple[jax.Array, jax.Array]) -> jax.Array:
        u, w = basis
        return u.T @ jax.vmap(layer.to_matrix)(gradients) @ w

    added, total = jax.jit(lambda batch: [m.sum(0) for m in jax.vmap(squares)(batch)]), None
    for begin in range(0, len(x), BATCH):
        sums = added(x[begin : begin + BATCH])
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    moments = tuple(m / len(x) for m in total or ())
    factors = kronecker.inputs, kronecker.outputs, {}, kronecker.layers, kronecker.treedef
    return Corrected(*factors, moments, bases)


class Clients(NamedTuple):
    """Models, their K-FACs and examples, and where a merged model is tried."""

    apply: Callable
    models: list[PyTree]
    fishers: list[Kronecker]
    examples: list[jax.Array]
    sizes: list[int]
    test: tuple[Any, Any]


@cache
def digits(seed: int) -> Clients:
    """Five clients trained here."""
    found, dataset = bits.digits(seed), data.load("digits")
    parts = data.split("dirichlet-client", dataset.train_y, bits.CLIENTS, seed=seed, alpha=0.1)
    sent = found.payloads(ff.fedfisher(found.apply, ff.categorical(), captured=found.captured))
    examples = [jnp.asarray(dataset.train_x[rows]) for rows in parts]
    models, fishers = [p.params for p in sent], [p.statistics for p in sent]
    return Clients(found.apply, models, fishers, examples, [len(rows) for rows in parts], found.test)


@cache
def golden(seed: int) -> Clients:
    """The authors' five clients, whatever the seed."""
    del seed
    x, test_x, _, test_y = layer_by_layer.world()
    who = range(authors_run.CLIENTS)
    models, fishers = [authors_run.params(i) for i in who], [authors_run.kronecker(i) for i in who]
    examples = [x[authors_run.rows(i)] for i in who]
    return Clients(authors_run.NETWORK.apply, models, fishers, examples, list(authors_run.sizes()), (test_x, test_y))


@cache
def measured(source: str, seed: int, count: int) -> tuple[Clients, list[Corrected]]:
    """Clients and their corrected Fishers."""
    found = {"digits": digits, "golden": golden}[source](seed)
    clients = zip(found.models, found.fishers, found.examples, strict=True)
    return found, [corrected(found.apply, m, f, x[: count or None]) for m, f, x in clients]


def run(source: str, seed: int, method: str, damping: float, examples: int) -> dict[str, Any]:
    """One merge: its accuracy, and the solver's steps."""
    clients, fishers = measured(source, seed, examples)
    chosen = {"kfac": clients.fishers, "ekfac": fishers}[method]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    problem = solve.objective(stack(chosen), stack(clients.models), jnp.asarray(clients.sizes, jnp.float32))
    solution = ff.conjugate_gradients(damping=damping, iterations=ITERATIONS)(problem)
    test_x, test_y = map(jnp.asarray, clients.test)
    accuracy = ff.evaluate(clients.apply, ff.categorical(), solution.params, test_x, test_y).accuracy
    return {"accuracy": 100 * float(accuracy), "iterations": int(solution.diagnostics["iterations"])}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(
        Settings, __doc__, quick={"seeds": 1, "sources": ("digits",), "damping": (0.3,), "examples": 40}
    )
    grid = [
        {"source": s, "seed": seed, "method": m, "damping": d, "examples": settings.examples}
        for s in settings.sources
        for seed in (range(settings.seed, settings.seed + settings.seeds) if s == "digits" else (0,))
        for d in settings.damping
        for m in METHODS
    ]
    found = {
        tuple(record["settings"].values())[:4]: record["result"] for record in common.run_all(settings.out, grid, run)
    }
    rows, summary = [], {}
    for source in settings.sources:
        seeds = sorted({seed for s, seed, *_ in found if s == source})
        for damping in settings.damping:
            each = {m: np.array([found[source, seed, m, damping]["accuracy"] for seed in seeds]) for m in METHODS}
            gain = each["ekfac"] - each["kfac"]
            cells = [common.mean_std(values) for values in (*each.values(), gain)]
            rows.append([bits.TITLES[source].format(len(seeds)), f"{damping:g}", *cells])
            summary[f"{source}, damping {damping:g}"] = {m: float(values.mean()) for m, values in each.items()}
    text = "Test accuracy in %, mean ± std over seeds.\n\n"
    text += common.markdown_table(["clients", "damping", *TITLES.values(), "difference"], rows)
    common.report(settings.out, text, summary)


if __name__ == "__main__":
    main()

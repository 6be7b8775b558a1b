"""A structure that is defined here and nowhere in the library, through everything that takes structures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import explicit
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import fedfisher_jax as ff
from fedfisher_jax import cli
from fedfisher_jax import payload as files
from fedfisher_jax.curvature import STRUCTURES, Structure, damped_inverse, register, shaped
from fedfisher_jax.payload import _file as file
from fedfisher_jax.payload import plan
from fedfisher_jax.privacy import attacks, noise
from fedfisher_jax.silos import _model_file as model_file


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The structure is known while these tests run, and to no others."""
    yield register(LeafBlocks)
    del STRUCTURES["leaf_blocks"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafBlocks(Structure):
    """A dense block for each parameter leaf, nothing between leaves."""

    name: ClassVar[str] = "leaf_blocks"
    signs: ClassVar[Mapping[str, Any]] = {"blocks": "semidefinite"}
    additive: ClassVar[bool] = True
    reads: ClassVar[Any] = "gradients"

    matrices: list[Any]  # per leaf [size, size]
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})
    treedef: Any = dataclasses.field(metadata={"static": True})

    def _each(self, function, v):
        leaves = jax.tree.leaves(v)
        return self.treedef.unflatten(
            [function(m, x.ravel()).reshape(x.shape) for m, x in zip(self.matrices, leaves, strict=True)]
        )

    def matvec(self, v):
        """Block by block."""
        return self._each(lambda m, x: m @ x, v)

    def diagonal(self):
        """The blocks' diagonals."""
        pairs = zip(self.matrices, self.shapes, strict=True)
        return self.treedef.unflatten([jnp.diagonal(m).reshape(shape) for m, shape in pairs])

    def scale(self, factor):
        """Factor · F."""
        return dataclasses.replace(self, matrices=[factor * m for m in self.matrices])

    def blocks(self):
        """Each leaf alone."""
        return tuple((leaf,) for leaf in range(len(self.shapes)))

    def to_dense(self):
        """Block-diagonal."""
        return jax.scipy.linalg.block_diag(*self.matrices)

    def spectral(self, function, cutoff=None):
        """By each block's eigendecomposition."""
        parts = [jnp.linalg.eigh(m) for m in self.matrices]
        factors = [function(jnp.maximum(values, 0), 1e-9 * values[-1], n) for n, (values, _) in enumerate(parts)]
        turned = [(u * f) @ u.T for (_, u), f in zip(parts, factors, strict=True)]
        return dataclasses.replace(self, matrices=turned).matvec

    def names(self, leaves):
        """By the leaf's path."""
        return tuple(f"blocks/{leaf.path}" for leaf in leaves)

    @classmethod
    def outline(cls, static, leaves, treedef):
        """Squares of the leaves' sizes."""
        if static:
            raise ValueError("static: expected nothing for leaf_blocks")
        return cls([shaped(leaf.size, leaf.size) for leaf in leaves], tuple(leaf.shape for leaf in leaves), treedef)

    @classmethod
    def sums(cls, pulled):
        """Products of each leaf's gradients."""
        rows = [g.reshape(g.shape[0] * g.shape[1], -1) for g in pulled.leaves]
        return [r.T @ r for r in rows]

    @classmethod
    def from_sums(cls, mean, inputs, captured, params):
        """The means."""
        leaves, treedef = jax.tree.flatten(params)
        return cls(mean, tuple(leaf.shape for leaf in leaves), treedef)


def apply(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


PARAMS = {"b": zoo.normal(0, 5), "v": zoo.normal(1, 5, 3), "w": zoo.normal(2, 4, 5)}
X, Y = zoo.normal(3, 17, 4), jnp.asarray(np.random.default_rng(0).integers(0, 3, 17))
LIKELIHOOD = ff.categorical()


def measured(params=PARAMS, **options):
    run = jax.jit(lambda p: ff.fishers(apply, LIKELIHOOD, p, ff.examples(X, Y), batch_size=4, **options))
    return run(params)


@pytest.fixture(scope="module")
def fisher(registered):
    return measured(structures=("leaf_blocks",))["leaf_blocks"]


def sent(fisher):
    return ff.Payload(jnp.asarray(17.0), PARAMS, fisher)


def about():
    return files.About(rule="mine", likelihood="categorical", start=files.fingerprint(PARAMS), kind="exact")


def test_the_estimate_is_the_dense_matrix_within_leaves(fisher):
    dense = np.asarray(explicit.fisher(apply, LIKELIHOOD, PARAMS, X, Y))
    expected = explicit.block_diagonal(dense, fisher, PARAMS)
    np.testing.assert_allclose(fisher.to_dense(), expected, rtol=1e-9, atol=1e-12)
    assert np.abs(dense - expected).max() > 0.01 * np.abs(dense).max()


def test_one_pass_gives_it_beside_the_others(fisher):
    together = measured(structures=("diagonal", "leaf_blocks", "full", "kronecker"))
    np.testing.assert_allclose(together["leaf_blocks"].to_dense(), fisher.to_dense(), rtol=1e-12)
    np.testing.assert_allclose(
        explicit.flat(together["diagonal"].values), explicit.flat(fisher.diagonal()), rtol=1e-9, atol=1e-14
    )
    skipped = measured(structures=("leaf_blocks",), skip=0.05)["leaf_blocks"]
    gap = np.linalg.eigvalsh(np.asarray(fisher.to_dense()) - np.asarray(skipped.to_dense()))
    assert gap[0] > -1e-12 and 0 < gap.sum() < 0.5 * float(jnp.trace(fisher.to_dense()))


@pytest.mark.slow
@pytest.mark.parametrize("solver", [ff.conjugate_gradients, ff.closed_form])
def test_solvers_take_it(fisher, solver):
    others = [jax.tree.map(lambda leaf, n=n: leaf + 0.1 * zoo.normal(n, *leaf.shape), PARAMS) for n in (5, 6)]
    fishers = [measured(params, structures=("leaf_blocks",))["leaf_blocks"] for params in others]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    problem = ff.solve.objective(stack(fishers), stack(others), jnp.array([1.0, 3.0]))
    options = {"iterations": 500, "tolerance": 1e-12} if solver is ff.conjugate_gradients else {}
    got = solver(damping=0.1, **options)(problem).params
    dense = sum(share * np.asarray(f.to_dense()) for share, f in zip((0.25, 0.75), fishers, strict=True))
    shifts = np.zeros(len(dense))
    start = 0
    for leaf in jax.tree.leaves(PARAMS):
        shifts[start : start + leaf.size] = 0.1 * np.diag(dense)[start : start + leaf.size].mean()
        start += leaf.size
    expected = np.linalg.solve(dense + np.diag(shifts), explicit.flat(problem.pull)) + explicit.flat(problem.anchor)
    np.testing.assert_allclose(explicit.flat(got), expected, rtol=1e-5, atol=1e-7)


def test_damped_inverse(fisher):
    shifts, v = [0.1, 0.2, 0.3], jax.tree.map(lambda leaf: zoo.normal(8, *leaf.shape), PARAMS)
    sizes = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
    damped = np.asarray(fisher.to_dense()) + np.diag(np.repeat(shifts, sizes))
    expected = np.linalg.solve(damped, explicit.flat(v))
    np.testing.assert_allclose(explicit.flat(damped_inverse(fisher, shifts)(v)), expected, rtol=1e-8)


@pytest.mark.parametrize("like", [PARAMS, None])
def test_a_file_brings_it_back(fisher, like):
    data = files.dumps(sent(fisher), about())
    got, header = files.loads(data, like)
    assert header.structure == "leaf_blocks" and jax.tree.structure(got._replace(kind=None)) == jax.tree.structure(
        sent(fisher)
    )
    np.testing.assert_array_equal(got.statistics.to_dense(), fisher.to_dense())
    assert set(file.entries(got)) == {f"{kind}/{p}" for kind in ("params", "fisher/blocks") for p in "bvw"}


def test_a_file_that_is_no_fisher_is_refused(fisher):
    negative = fisher.scale(-1.0)
    with pytest.raises(ValueError, match="fisher/blocks/b: expected a positive semi-definite matrix"):
        files.dumps(sent(negative), about())


def test_compression_knows_its_matrices(fisher):
    said = about()
    budget = 60.0  # the header alone takes many times these few parameters
    chosen = plan.fit(sent(fisher), said, budget)
    assert {type(codec) for entry, codec in chosen.items() if entry.startswith("fisher/")} == {files.Cholesky}
    got, header = files.loads(files.dumps(sent(fisher), said, chosen), PARAMS)
    assert header.bits <= 32 * budget * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    dense = np.asarray(fisher.to_dense())
    assert 0 < np.abs(got.statistics.to_dense() - dense).max() < 1e-3 * np.abs(dense).max()
    with pytest.raises(ValueError, match="the authors' scheme has no leaf_blocks"):
        plan.authors(sent(fisher))


def test_noise_clips_each_block_and_keeps_it_semi_definite(fisher):
    start = jax.tree.map(jnp.zeros_like, PARAMS)
    silent = noise.Guarantee(1.0, 1e-5, 1, 0.0, clip_params=2.0, clip_fisher=1e-3)
    clipped = noise.privatise(sent(fisher), start, silent).statistics
    for got, matrix in zip(clipped.matrices, fisher.matrices, strict=True):
        np.testing.assert_allclose(got, matrix * 1e-3 / np.linalg.norm(matrix), rtol=1e-6, atol=1e-12)
    noisy = noise.privatise(sent(fisher), start, silent._replace(noise_multiplier=2.0)).statistics
    for got, matrix in zip(noisy.matrices, clipped.matrices, strict=True):
        assert np.linalg.eigvalsh(got)[0] > -1e-9 and np.abs(got - matrix).max() > 1e-4


# A rule with this structure, defined here too: the mean of models, entry by entry in each leaf's own metric.

SPLIT = [np.arange(0, 5), np.arange(5, 17)]
TRAINING = ff.LocalTraining(apply, LIKELIHOOD, optax.sgd(0.1), epochs=2, batch_size=4)
STILL = ff.conjugate_gradients(damping=0.1, tolerance=1e-12)


def leaf_rule(apply, likelihood):
    measure = ff.merge.MeasureFisher(apply, likelihood, "leaf_blocks", batch_size=4)

    def lift(payload, start):
        w, fisher = payload.weight, payload.statistics
        parts = {"weight": w, "fisher": fisher.scale(w), "params": jax.tree.map(lambda leaf: w * leaf, payload.params)}
        return parts | {"product": jax.tree.map(lambda leaf: w * leaf, fisher.matvec(payload.params))}

    def solve(summary, start):
        mean = lambda tree: jax.tree.map(lambda leaf: leaf / summary["weight"], tree)  # noqa: E731
        anchor, fisher = mean(summary["params"]), mean(summary["fisher"])
        pull = jax.tree.map(jnp.subtract, mean(summary["product"]), fisher.matvec(anchor))
        return ff.Merged(*STILL(ff.solve.Objective(fisher, pull, anchor, jnp.zeros(()))))

    return ff.Rule("leaf-blocks", measure, lift, solve, "add")


@pytest.fixture(scope="module")
def one_shot(registered):
    """(rule, cohort, payloads, the model that they should merge to by dense matrices)."""
    rule, cohort, key = leaf_rule(apply, LIKELIHOOD), ff.cohort(X, Y, SPLIT), jax.random.key(3)
    trained, _ = ff.federate.train_clients(TRAINING, PARAMS, cohort, key, strategy="sequential")
    update = ff.Update(trained.params, PARAMS)
    payloads, _ = ff.federate.measure_clients(rule.measure, update, cohort, key, strategy="sequential")
    sent = [jax.tree.map(lambda leaf, n=n: leaf[n], payloads) for n in range(2)]
    shares = [len(part) / 17 for part in SPLIT]
    dense = sum(w * np.asarray(p.statistics.to_dense()) for w, p in zip(shares, sent, strict=True))
    anchor = sum(w * explicit.flat(p.params) for w, p in zip(shares, sent, strict=True))
    pulled = sum(
        w * np.asarray(p.statistics.to_dense()) @ explicit.flat(p.params) for w, p in zip(shares, sent, strict=True)
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
    means = [block.mean() for block in np.split(np.diag(dense), np.cumsum(sizes)[:-1])]
    shift = np.diag(np.repeat(0.1 * np.array(means), sizes))
    expected = anchor + np.linalg.solve(dense + shift, pulled - dense @ anchor)
    return rule, cohort, sent, payloads, expected


@pytest.mark.slow
def test_a_rule_of_ones_own_in_one_shot_and_by_a_secure_sum(one_shot):
    rule, _, sent, payloads, expected = one_shot
    merged = {
        "stacked": ff.federate.merge_clients(rule, payloads),
        "listed": ff.merge_payloads(rule, sent),
    }
    for found in merged.values():
        np.testing.assert_allclose(explicit.flat(found.params), expected, rtol=1e-7, atol=1e-9)
    pytest.importorskip("cryptography")
    from fedfisher_jax.privacy._secure_merge import secure_merge

    np.testing.assert_allclose(explicit.flat(secure_merge(rule, sent).params), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_rule_of_ones_own_over_two_rounds(one_shot):
    rule, cohort, _, _, _ = one_shot
    federation = ff.Federation(TRAINING, rule, sampled=2)
    first = ff.rounds.init(federation, PARAMS, 2, jax.random.key(5))
    state, _ = ff.rounds.scan(federation, first, cohort, 2)
    by_hand = PARAMS
    for number in range(2):
        key = jax.random.fold_in(jax.random.fold_in(first.key, number), 1)
        trained, _ = ff.federate.train_clients(TRAINING, by_hand, cohort, key, strategy="sequential")
        update = ff.Update(trained.params, by_hand)
        payloads, _ = ff.federate.measure_clients(rule.measure, update, cohort, key, strategy="sequential")
        by_hand = ff.federate.merge_clients(rule, payloads, by_hand).params
    np.testing.assert_allclose(explicit.flat(state.params), explicit.flat(by_hand), rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_rule_of_ones_own_through_the_commands(registered, tmp_path, monkeypatch):
    """init, measure and merge, with the network and the rule named as module:function."""
    monkeypatch.chdir(tmp_path)
    for number, part in enumerate(SPLIT):
        np.savez(f"silo{number}.npz", x=np.asarray(X[part], np.float32), y=np.asarray(Y[part]))
    here = "test_sixth_structure"
    cli.main(["init", "--model", f"{here}:network", "--input-shape", "4", "--outputs", "3"])
    for number in range(2):
        own = ["--data", f"silo{number}.npz", "--silo", str(number), "--out", f"payload{number}.safetensors"]
        cli.main(["measure", *own, "--rule", f"{here}:leaf_rule", "--epochs", "2", "--model", f"{here}:network"])
    rule = ["--rule", f"{here}:leaf_rule", "--model", f"{here}:network"]
    cli.main(["merge", "payload0.safetensors", "payload1.safetensors", *rule])
    start = model_file.read(Path("start.safetensors"), f"{here}:network").params
    sent = [files.read(f"payload{number}.safetensors", start)[0] for number in range(2)]
    assert {type(one.statistics) for one in sent} == {LeafBlocks}
    merged = model_file.read(Path("global.safetensors"), f"{here}:network").params
    expected = ff.merge_payloads(leaf_rule(apply, LIKELIHOOD), sent).params
    np.testing.assert_allclose(explicit.flat(merged), explicit.flat(expected), rtol=1e-5, atol=1e-6)


def network(input_shape, outputs):
    """For `--model`: (init, apply) of the network above."""
    assert (tuple(input_shape), outputs) == ((4,), 3)
    return lambda key: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS), apply


def test_attacks_read_it(fisher):
    layer = ff.capture(apply, PARAMS, X).layers[0]
    dense = np.asarray(explicit.fisher(apply, LIKELIHOOD, PARAMS, X, Y))[-20:, -20:].reshape(4, 5, 4, 5)
    got = attacks.input_moment(fisher, layer)
    np.testing.assert_allclose(got[:4, :4], np.einsum("iojo->ij", dense), rtol=1e-8)
    np.testing.assert_array_equal(got[-1, :-1], 0)  # weight and bias are different leaves
    inputs = attacks.inputs_of(fisher, layer, X.mean(0))
    np.testing.assert_allclose(
        inputs.covariance + np.outer(inputs.mean, inputs.mean), got[:4, :4] / got[-1, -1], rtol=1e-8, atol=1e-10
    )
    scores = attacks.fisher_scores(apply, LIKELIHOOD, PARAMS, fisher, X, Y)
    gradients = np.asarray(explicit.gradients(apply, LIKELIHOOD, PARAMS, X, Y))
    matrix = np.asarray(fisher.to_dense())
    damped = matrix + attacks.membership.DAMPING * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
    expected = -np.einsum("nd,nd->n", gradients, np.linalg.solve(damped, gradients.T).T)
    np.testing.assert_allclose(scores, expected, rtol=1e-7)

"""Bits of payloads: the authors' scheme, and budgets."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import STRUCTURES, about, payload
from test_golden import captured, kronecker, offsets_first, payloads

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.federate._simulate import merge_clients
from fedfisher_jax.payload import plan

SIZE = 44_190  # parameters of LeNet
START = golden.init()


def saying(silo=0):
    return files.About("fedfisher-kfac", "categorical", files.fingerprint(START), "exact", silo)


def data_bits(sent, chosen):
    arrays = files._file.entries(sent)
    return sum(files._codecs.bits(chosen[name], x.shape, x.dtype) for name, x in arrays.items())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("budget", [60.0, 80.0])
@pytest.mark.parametrize("stochastic", [False, True])
def test_files_fit_their_budget(structure, budget, stochastic):
    sent = payload(structure)
    chosen = plan.fit(sent, about(structure), budget, stochastic=stochastic)
    data = files.dumps(sent, about(structure), chosen, np.random.default_rng(0))
    assert 8 * len(data) <= budget * 32 * 44
    files.loads(data)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_no_budget(budget):
    with pytest.raises(ValueError, match="budget: got"):
        plan.fit(payload(None), about(None), budget)


def test_a_budget_that_is_too_small_names_one_that_works():
    sent = payload("kronecker")
    with pytest.raises(ValueError, match="at least") as refused:
        plan.fit(sent, about("kronecker"), 0.1)
    least = float(str(refused.value).split("at least ")[1].split()[0])
    plan.fit(sent, about("kronecker"), least + 0.001)


def test_authors_scheme_costs_what_the_paper_says():
    sent = payloads(kronecker)[0]
    chosen = plan.authors(sent)
    rank = int(2 * SIZE / (2 * sum([25 + 6, 150 + 16, 256 + 120, 120 + 84, 84 + 10]) + 2 * 5))
    assert rank == 50 and {c.rank for c in chosen.values() if isinstance(c, files.Singular)} == {50}
    assert data_bits(sent, chosen) / (32 * SIZE) == pytest.approx(1.034, abs=5e-4)
    diagonal = sent._replace(statistics=ff.Diagonal(jax.tree.map(jnp.square, sent.params)))
    scales = 2 * 5 * 32
    assert data_bits(diagonal, plan.authors(diagonal)) == 32 * SIZE + scales
    assert plan.authors(sent._replace(statistics=None)) == {}


@pytest.mark.parametrize("client", [0, 3])
def test_authors_scheme_gives_their_factors(client):
    """Theirs carry p_i each; a fresh SVD tips some numbers to the next level (golden/README.md)."""
    sent = payloads(kronecker)[client]
    got, _ = files.loads(files.dumps(sent, saying(), plan.authors(sent)), START, parity=True)
    share = golden.array("p")[client]
    for side, factors in (("A", got.statistics.inputs), ("G", got.statistics.outputs)):
        for layer, ours in zip(got.statistics.layers, factors, strict=True):
            name = ("conv1", "conv2", "fc1", "fc2", "fc3")[layer.weight]
            theirs = golden.array(f"client{client}/kfac_comp_{side}/{name}") / share
            theirs = offsets_first(theirs, name) if side == "A" else theirs
            assert np.abs(np.asarray(ours) - theirs).max() < 0.01 * np.abs(theirs).max(), name
            assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs), name


@pytest.fixture(scope="module")
def merged_accuracy():
    """Accuracy of the merge of the golden clients' files, and the largest file relative to FedAvg's bits."""
    rule = ff.fedfisher(golden.network.apply, ff.categorical())
    held_out = tuple(map(jnp.asarray, golden.held_out()))

    def accuracy(choose):
        files_, sizes = [], []
        for silo, sent in enumerate(payloads(kronecker)):
            data = files.dumps(sent, saying(silo), choose(sent, saying(silo)))
            sizes.append(8 * len(data) / (32 * SIZE))
            files_.append(files.loads(data, START, layers=captured.layers)[0])
        merged = merge_clients(rule, jax.tree.map(lambda *leaves: jnp.stack(leaves), *files_))
        measured = ff.evaluate(golden.network.apply, ff.categorical(), merged.params, *held_out)
        return 100 * float(measured.accuracy), max(sizes)

    return accuracy


@pytest.mark.slow
def test_kfac_for_fedavgs_bits_is_as_good_as_uncompressed(merged_accuracy):
    """The whole file counts, headers included."""
    plain, bits = merged_accuracy(lambda sent, said: plan.none(sent))
    assert bits > 3.9
    for budget, within in ((1.0, 0.5), (0.5, 1.0)):
        accuracy, bits = merged_accuracy(lambda sent, said, budget=budget: plan.fit(sent, said, budget))
        assert bits <= budget and abs(accuracy - plain) <= within


def test_narrow_matrices_get_the_finest_width_that_fits():
    """A layer whose matrices are all below 16 wide: width 7 with whole matrices fits, so 4 bits would be a waste."""
    draw = np.random.default_rng(0)
    shapes = {"table": (400, 12), "head": (12, 10)}
    params = {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    apply = lambda p, x: (x @ p["table"]) @ p["head"]  # noqa: E731
    rule = ff.fedfisher(apply, ff.categorical())
    data = ff.examples(draw.normal(size=(30, 400)).astype(np.float32), draw.integers(0, 10, 30))
    sent = rule.measure(ff.Update(params, params), data, jax.random.key(0))
    small = sent._replace(
        statistics=jax.tree.map(lambda leaf: leaf[:12, :12] if leaf.shape == (400, 400) else leaf, sent.statistics)
    )
    said = files.About("fedfisher-kfac", "categorical", files.fingerprint(params), "exact")
    name = files._structures.name_of(small.statistics)
    arrays = files._file.entries(small)
    assert max(a.shape[-1] for n, a in arrays.items() if plan.is_matrix(name, n)) < plan.KEPT
    sizes = {
        width: files._file.size_bits(
            small,
            said,
            {n: plan._codec(files._structures.sign(name, n), a, width, 12, False) for n, a in arrays.items()},
        )
        for width in (4, 5, 6, 7, 8)
    }
    full = 32 * sum(leaf.size for leaf in params.values())
    for width in (5, 6, 7):
        chosen = plan.fit(small, said, sizes[width] / full)
        assert files._file.size_bits(small, said, chosen) == sizes[width]


def test_authors_scheme_counts_the_groups_of_a_convolution():
    """Factors cost about as much as parameters, a convolution of eight groups having eight matrices a side."""
    draw = np.random.default_rng(0)
    params = {"conv": jnp.asarray(draw.normal(size=(3, 3, 2, 16))), "head": jnp.asarray(draw.normal(size=(256, 10)))}

    def apply(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(x, p["conv"], (2, 2), "SAME", feature_group_count=8, dimension_numbers=dims)
        return jax.nn.relu(h).reshape(len(x), -1) @ p["head"]

    data = ff.examples(draw.normal(size=(8, 8, 8, 16)), draw.integers(0, 10, 8))
    sent = ff.fedfisher(apply, ff.categorical()).measure(ff.Update(params, params), data, jax.random.key(0))
    arrays, chosen = files._file.entries(sent), plan.authors(sent)
    assert arrays["fisher/inputs/conv"].shape == (8, 18, 18)
    bits = {"params": 0, "fisher": 0}
    for name, array in arrays.items():
        bits[name.partition("/")[0]] += files._codecs.bits(chosen[name], array.shape, array.dtype)
    assert 0.9 < bits["fisher"] / bits["params"] < 1.1

"""Robust merges against explicit numpy, and what a minority of clients can do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import payload
from scipy import optimize

import fedfisher_jax as ff
from fedfisher_jax.curvature import Diagonal
from fedfisher_jax.merge import _centres as centres
from fedfisher_jax.merge import _robust as robust

CLIENTS, SIZE = 7, 11
VECTORS = np.random.default_rng(0).normal(size=(CLIENTS, SIZE))
WEIGHT = np.arange(1.0, CLIENTS + 1)


def nothing(params, x):
    return x


FEDAVG = ff.fedavg(nothing, ff.categorical())
DIAGONAL = ff.fedfisher(nothing, ff.categorical(), structure="diagonal")
KFAC = ff.fedfisher(nothing, ff.categorical())


def test_coordinates_are_those_of_numpy():
    tree = {"a": jnp.asarray(VECTORS[:, :6].reshape(CLIENTS, 2, 3)), "b": jnp.asarray(VECTORS[:, 6:])}
    ordered = np.sort(VECTORS, axis=0)
    for ours, theirs in (
        (centres.trimmed_mean(tree, 2), ordered[2:5].mean(0)),
        (centres.coordinate_median(tree), ordered[3]),
        (centres.trimmed_mean(tree, 0), VECTORS.mean(0)),
    ):
        np.testing.assert_allclose(np.concatenate([ours["a"].ravel(), ours["b"]]), theirs, rtol=1e-12)


def test_the_geometric_median_minimises_the_sum_of_distances():
    def total(point):
        return WEIGHT @ np.linalg.norm(VECTORS - point, axis=1)

    point, by = centres.geometric_median(jnp.asarray(VECTORS), jnp.asarray(WEIGHT))
    best = optimize.minimize(total, VECTORS.mean(0), tol=1e-12).x
    np.testing.assert_allclose(point, best, atol=1e-4)
    np.testing.assert_allclose(by @ VECTORS / by.sum(), point, rtol=1e-12)
    far = np.concatenate([VECTORS, np.full((3, SIZE), 1e9)])  # a minority of the weight, anywhere
    moved, _ = centres.geometric_median(jnp.asarray(far), jnp.ones(CLIENTS + 3))
    assert np.linalg.norm(moved - VECTORS.mean(0)) < 10
    one, _ = centres.geometric_median(jnp.ones((3, 2)), jnp.ones(3))
    np.testing.assert_allclose(one, 1)


def test_krum_scores_are_those_of_the_paper():
    squared = robust.squared_distances(jnp.asarray(VECTORS))
    for faulty in (1, 2):
        scores = robust.krum_scores(squared, faulty)
        for i, score in enumerate(scores):
            others = sorted(np.sum((VECTORS[i] - VECTORS[j]) ** 2) for j in range(CLIENTS) if j != i)
            np.testing.assert_allclose(score, sum(others[: CLIENTS - faulty - 2]), rtol=1e-12)


def test_who_stands_out_is_told_by_the_median_deviation():
    """Almost no normal score is called odd, a far one always is, and equal ones are all kept."""
    draw = np.random.default_rng(0).normal(5.0, 0.2, size=(400, 10))
    middle = np.median(draw, axis=1, keepdims=True)
    want = 0.6745 * (draw - middle) / np.median(np.abs(draw - middle), axis=1, keepdims=True) > 3.5
    told = jax.vmap(lambda scores: robust.above(scores) > robust.STANDS_OUT)
    np.testing.assert_array_equal(told(jnp.asarray(draw)), want)
    assert want.any(1).mean() < 0.2
    draw[:, 3] += 3.0
    assert np.asarray(told(jnp.asarray(draw)))[:, 3].all()
    assert not np.asarray(robust.above(jnp.ones(5))).any()
    assert np.isinf(robust.above(jnp.asarray([1.0, 1.0, 2.0, 1.0]))[2])


def test_honest_clients_are_all_kept_by_outliers_and_liars_are_not():
    """Moves equally far from each other: their merge is the plain one, and without a liar's file that of the others."""
    start = {"w": jnp.full(7, 3.0)}
    kept = lambda sent: np.asarray(ff.merge_payloads(robust.robust(FEDAVG, "outliers"), sent, start).params["w"])  # noqa: E731
    sent = [ff.Payload(jnp.asarray(1.0), {"w": 3 + jnp.asarray(row)}) for row in np.eye(7)]
    np.testing.assert_allclose(kept(sent), 3 + 1 / 7)
    for lie in (jnp.full(7, -9.0), 3 - 2 * jnp.eye(7)[:6].sum(0) / 6, 3 + 9 * jnp.eye(7)[6]):  # far, against all, long
        lying = [*sent[:-1], sent[-1]._replace(params={"w": lie})]
        np.testing.assert_allclose(kept(lying), 3 + np.eye(7)[:-1].mean(0), atol=1e-12)


def test_a_longer_move_in_the_direction_of_the_others_does_not_stand_out():
    """Clients agree more or less, and the longest move is of one in between; by plain distances it would go."""
    draw, lengths = np.random.default_rng(0), np.r_[np.linspace(0.8, 1.2, 8), 1.55]
    moves = 1 + np.array([0.6, 0.4, 0.5, 0.7, 0.3, 0.5, 0.4, 0.6, 0.5])[:, None] * draw.normal(size=(9, 400))
    moves *= (lengths / np.linalg.norm(moves, axis=1))[:, None]
    far = np.asarray(robust.above(robust.krum_scores(robust.squared_distances(jnp.asarray(moves)), 3)))
    assert far[8] == far.max() > robust.STANDS_OUT > np.asarray(robust.oddity(jnp.asarray(moves), 3)).max()
    unit = moves / lengths[:, None]
    scores = np.sort(2 - 2 * unit @ unit.T, axis=1)[:, 1:5].sum(1)  # to 9 − 3 − 2 others
    each = [(s - np.median(s)) / np.median(abs(s - np.median(s))) * 0.6745 for s in (scores, lengths)]
    np.testing.assert_allclose(robust.oddity(jnp.asarray(moves), 3), np.maximum(*each), rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.01, 1e12), min_size=CLIENTS, max_size=CLIENTS), st.floats(1 / CLIENTS + 1e-3, 1.0))
def test_no_share_is_above_the_cap_and_others_stay(weights, cap):
    got = np.asarray(robust.capped(jnp.asarray(weights), cap))
    assert (got <= cap * got.sum() * (1 + 1e-6)).all()
    below = got < np.max(got) * (1 - 1e-9)
    np.testing.assert_allclose(got[below], np.asarray(weights)[below], rtol=1e-12)
    if np.max(weights) <= cap * np.sum(weights):
        np.testing.assert_allclose(got, weights, rtol=1e-9)
    else:  # as much as is allowed is left
        np.testing.assert_allclose(np.max(got), cap * got.sum(), rtol=1e-6)


def sent(count=CLIENTS, structure="diagonal", **changes):
    """Payloads of clients that agree but for a little, some of them changed."""
    one = payload(structure, 0, jnp.float64)
    found = []
    for number in range(count):
        draw = np.random.default_rng(number)
        params = jax.tree.map(lambda leaf: leaf + 0.01 * draw.normal(size=leaf.shape), one.params)  # noqa: B023
        found.append(one._replace(params=params))
    return [changes.get(f"at{n}", lambda x: x)(each) for n, each in enumerate(found)]


def gap(first, second):
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in leaves)


def flipped(one):
    return one._replace(params=jax.tree.map(lambda leaf: -10 * leaf, one.params))


def enormous(one):
    far = one._replace(params=jax.tree.map(lambda leaf: leaf + 1.0, one.params))
    return far._replace(statistics=one.statistics.scale(1e9))


def claims(one):
    return flipped(one)._replace(weight=jnp.asarray(1e12))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["geometric-median", "krum", "objective"])
@pytest.mark.parametrize("attack", [flipped, enormous, claims])
def test_one_of_seven_moves_a_robust_merge_little_and_a_plain_one_much(how, attack):
    honest, attacked = sent(), sent(at3=attack)
    plain = ff.merge_payloads(DIAGONAL, honest).params
    assert gap(ff.merge_payloads(DIAGONAL, attacked).params, plain) > 0.3
    merged = ff.merge_payloads(robust.robust(DIAGONAL, how), attacked)
    # a capped Fisher that lies may still move what the cap leaves it; who is left out moves nothing
    assert gap(merged.params, plain) < {"krum": 0.02, "geometric-median": 0.6 if attack is enormous else 0.05}.get(
        how, 0.05
    )


@pytest.mark.parametrize("how", ["trimmed", "median"])
def test_coordinates_stand_an_attack(how):
    plain = ff.merge_payloads(FEDAVG, sent(structure=None)).params
    for attack in (flipped, claims):
        assert gap(ff.merge_payloads(robust.robust(FEDAVG, how), sent(structure=None, at2=attack)).params, plain) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cap", "geometric-median", "krum", "objective"])
def test_a_silo_under_two_names_counts_once(how):
    """The pair has one client's weight: the merge is that of the pair's one file where each weighs as it does."""
    honest = sent(5)
    twice = [*honest, honest[0]._replace(weight=honest[0].weight)]
    rule = robust.robust(FEDAVG, how, cap=1.0)
    plain = ff.merge_payloads(robust.robust(FEDAVG, "cap", cap=1.0), honest).params
    if how == "cap":
        assert gap(ff.merge_payloads(rule, twice).params, plain) < 1e-12
        assert gap(ff.merge_payloads(FEDAVG, twice).params, plain) > 1e-5
    else:
        assert gap(ff.merge_payloads(rule, twice).params, plain) < 0.02


def test_an_equal_share_is_a_cap_however_it_is_rounded():
    """1 / 49 times 49 is 1 − 2⁻⁵³."""
    models = [ff.Payload(jnp.asarray(1.0 + n), jnp.full(1, float(n))) for n in range(49)]
    merged = ff.merge_payloads(robust.robust(FEDAVG, "cap", cap=1 / 49), models)
    np.testing.assert_allclose(merged.params, 24)


@pytest.mark.slow
def test_equal_clients_give_their_model_and_order_does_not_matter():
    same = [sent(1)[0]] * 5
    for how in ("cap", "geometric-median", "krum", "outliers", "objective"):
        rule = robust.robust(DIAGONAL, how)
        assert gap(ff.merge_payloads(rule, same).params, same[0].params) < 1e-9
        some = sent(at3=flipped)
        assert gap(ff.merge_payloads(rule, some).params, ff.merge_payloads(rule, some[::-1]).params) < 1e-9


def test_the_disagreement_is_what_models_cost():
    fishers = np.random.default_rng(1).uniform(size=(CLIENTS, SIZE))
    stacked = ff.Payload(jnp.ones(CLIENTS), jnp.asarray(VECTORS), Diagonal(jnp.asarray(fishers)))
    costs = np.array([[fishers[j] @ (VECTORS[i] - VECTORS[j]) ** 2 for j in range(CLIENTS)] for i in range(CLIENTS)])
    want = [max(np.median(np.delete(costs[i], i)), np.median(np.delete(costs[:, i], i))) for i in range(CLIENTS)]
    np.testing.assert_allclose(robust.disagreements(stacked), want, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: robust.robust(DIAGONAL, "median"), "expected cap, geometric-median, krum, outliers, objective"),
        (lambda: robust.robust(FEDAVG, "mean"), "how: got 'mean'"),
        (lambda: robust.robust(FEDAVG, "cap", cap=1.5), "cap: got 1.5"),
        (lambda: robust.robust(ff.then(FEDAVG, FEDAVG), "krum"), "2 exchanges"),
        (
            lambda: ff.merge_payloads(robust.robust(FEDAVG, "cap", cap=0.1), sent(5)),
            "cap: got 0.1, expected at least 1 / 5",
        ),
        (lambda: ff.merge_payloads(robust.robust(FEDAVG, "krum"), sent(4)), "expected at least 5 clients"),
        (
            lambda: ff.merge.merge_one_by_one(robust.robust(KFAC, "cap"), sent(structure="kronecker")),
            "needs all payloads at once",
        ),
        (lambda: ff.merge_payloads(robust.robust(FEDAVG, "trimmed", faulty=3), sent(6)), "expected at least 7 clients"),
    ],
)
def test_what_a_robust_merge_refuses(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("among", ["a tuple", "a tree"])
def test_a_fisher_among_other_statistics_is_capped_as_one_alone(among):
    """As those of FedBEns (a tuple) and of pseudo-data (a Fisher beside moments)."""
    values = jnp.asarray([1.0, 1.0, 1.0, 1e9])[:, None] * jnp.ones((4, 3))
    fisher, weight, others = Diagonal({"w": values}), jnp.ones(4), jnp.ones((4, 2))
    alone = robust._tamed(fisher, weight, 0.3).values["w"]
    assert float(alone[3].sum()) / float(alone.sum()) == pytest.approx(0.3)
    held = (fisher, others) if among == "a tuple" else {"fisher": fisher, "moments": others}
    found = robust._tamed(held, weight, 0.3)
    inner, rest = found if among == "a tuple" else (found["fisher"], found["moments"])
    np.testing.assert_array_equal(inner.values["w"], alone)
    np.testing.assert_array_equal(rest, others)

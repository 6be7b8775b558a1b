from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import START, STRUCTURES, payload
from scipy import special, stats

import fedfisher_jax as ff
from fedfisher_jax.curvature import Gram, Layer
from fedfisher_jax.curvature.structures import _signs as signs
from fedfisher_jax.payload import _file as file
from fedfisher_jax.payload import _structures as structures
from fedfisher_jax.privacy import example_noise, noise

SILENT = noise.Guarantee(1.0, 1e-5, 1, 0.0, clip_params=2.0, clip_fisher=0.5)  # clips, adds nothing
MOVED = {structure: payload(structure) for structure in STRUCTURES if structure != "low_rank"}


def analytic_delta(epsilon, sigma):
    """δ of the Gaussian mechanism with sensitivity one, as Balle and Wang write it (arXiv 1805.06530, theorem 8)."""
    return special.ndtr(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * special.ndtr(-0.5 / sigma - epsilon * sigma)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 10.0])
@pytest.mark.parametrize("epsilon", [0.01, 0.5, 4.0])
def test_delta_is_that_of_the_formula(epsilon, sigma):
    assert noise.delta_of(epsilon, sigma) == pytest.approx(analytic_delta(epsilon, sigma), rel=1e-9, abs=1e-16)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 7])
def test_noise_is_that_of_dp_accounting(epsilon, rounds):
    """Rounds of Gaussian noise compose to one with σ/√rounds; privacy loss distributions say the same from above."""
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    found = noise.noise_for(epsilon, 1e-5, rounds=rounds, clip_params=1.0)
    event = accounting.GaussianDpEvent(found.noise_multiplier)
    spent = pld.PLDAccountant().compose(event, rounds).get_epsilon(1e-5)
    assert epsilon - 1e-6 <= spent <= epsilon * 1.01 + 1e-3
    assert noise.epsilon_of(found.noise_multiplier, 1e-5, rounds) == pytest.approx(epsilon, rel=1e-9)


@pytest.mark.parametrize("epsilon", [1e-300, 1e-6, 1.0, 1000.0, 1e6, 1e300])
@pytest.mark.parametrize("delta", [1e-300, 1e-12, 1e-5, 0.5])
def test_the_least_noise_is_found_for_every_promise(epsilon, delta):
    found = noise.noise_for(epsilon, delta, clip_params=1.0)
    assert found.epsilon == epsilon and 0 < found.noise_multiplier < np.inf
    assert noise.delta_of(epsilon, found.noise_multiplier) <= delta
    if delta > 1e-100 and 1e-100 < epsilon < 1e100:
        assert noise.delta_of(epsilon, 0.999 * found.noise_multiplier) > delta


def test_noise_for_a_thousand_is_where_both_terms_overflow():
    """σ = 0.02458 for ε = 1000 and δ = 1e-5, from mpmath at 400 digits."""
    mpmath = pytest.importorskip("mpmath")
    found = noise.noise_for(1000.0, 1e-5, clip_params=1.0).noise_multiplier
    with mpmath.workdps(600):
        half, moved = mpmath.mpf(1) / (2 * mpmath.mpf(found)), 1000 * mpmath.mpf(found)
        delta = mpmath.ncdf(half - moved) - mpmath.exp(1000) * mpmath.ncdf(-half - moved)
    assert float(delta) == pytest.approx(1e-5, rel=1e-6)


def test_much_noise_promises_everything():
    assert noise.epsilon_of(1e6, 1e-5) == 0.0


def blocks(sent):
    """What is released: the move of the parameters, and the arrays of the Fisher."""
    arrays = file.entries(sent)
    params = [array for name, array in arrays.items() if name.startswith("params/")]
    move = [np.ravel(p - np.asarray(b)) for p, b in zip(params, jax.tree.leaves(START), strict=True)]
    return [np.concatenate(move).astype(float)] + [np.asarray(arrays[n], float) for n in arrays if n[:7] == "fisher/"]


@pytest.mark.parametrize("structure", MOVED)
def test_clipping_bounds_what_any_data_can_change(structure):
    """Two extremes: however far apart two silos' payloads are, what they release differs by the sensitivity at most."""
    far = [
        MOVED[structure]._replace(params=jax.tree.map(lambda leaf, s=s: s * 1e3 * leaf, MOVED[structure].params))
        for s in (1, -1)
    ]
    released = [blocks(noise.privatise(sent, START, SILENT)) for sent in far]
    assert np.linalg.norm(released[0][0]) == pytest.approx(2.0, rel=1e-4)
    gap = np.linalg.norm(released[0][0] - released[1][0]) / 2.0
    assert 0.9 * noise.SENSITIVITY <= gap <= noise.SENSITIVITY * (1 + 1e-5)
    for block in released[0][1:]:
        assert np.linalg.norm(block) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("structure", MOVED)
def test_within_the_clip_nothing_changes(structure):
    wide = SILENT._replace(clip_params=1e6, clip_fisher=1e6)
    got = noise.privatise(MOVED[structure], START, wide)
    v = MOVED[structure].params
    for ours, theirs in zip(jax.tree.leaves(got.params), jax.tree.leaves(v), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    if structure is not None:
        probe = jax.tree.map(jnp.ones_like, v)
        expected = MOVED[structure].statistics.matvec(probe)
        for ours, theirs in zip(jax.tree.leaves(got.statistics.matvec(probe)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("structure", MOVED)
def test_noisy_payloads_are_payloads(structure):
    guarantee = SILENT._replace(noise_multiplier=3.0)
    first, second = (noise.privatise(MOVED[structure], START, guarantee) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(MOVED[structure])
    for name, array in file.entries(first).items():
        if name.startswith("fisher/"):
            signs.require_sign(structures.sign(structure, name), array)
    assert not np.array_equal(first.params["scale"], second.params["scale"])  # no seed


def gram(tree, matrix):
    layer = Layer(0, None, matrix.shape, (), ())
    return Gram((matrix,), (layer,), (matrix.shape,), jax.tree.structure(tree))


def test_noise_has_the_announced_size():
    n, guarantee = 60, SILENT._replace(noise_multiplier=1.3, clip_params=0.5, clip_fisher=3.0)
    tree = {"w": jnp.zeros((n, n))}
    sent = noise.Payload(jnp.asarray(9.0), tree, gram(tree, jnp.eye(n) * 1e9))
    clipped = np.asarray(noise.privatise(sent, tree, guarantee._replace(noise_multiplier=0.0)).statistics.inputs[0])
    std = guarantee.noise_multiplier * noise.SENSITIVITY * np.sqrt(2)
    got = noise.privatise(sent, tree, guarantee)
    drawn = np.ravel(got.params["w"]) / (std * 0.5)
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert np.linalg.norm(clipped) == pytest.approx(3.0, rel=1e-6)


def test_symmetric_noise_is_isotropic(monkeypatch):
    """Before projecting: ⟨noise, D⟩ has the same variance for diagonal and off-diagonal directions D of norm one."""
    monkeypatch.setattr(signs, "nearest_semidefinite", lambda array: array)
    n, guarantee = 12, SILENT._replace(noise_multiplier=1.0)
    tree = {"w": jnp.zeros((n, n))}
    layer = Layer(0, None, (n, n), (), ())
    sent = noise.Payload(
        jnp.asarray(9.0), tree, Gram((jnp.zeros((n, n)),), (layer,), ((n, n),), jax.tree.structure(tree))
    )
    draws = np.stack([np.asarray(noise.privatise(sent, tree, guarantee).statistics.inputs[0]) for _ in range(400)])
    std = noise.SENSITIVITY * np.sqrt(2) * guarantee.clip_fisher
    lower = np.tril_indices(n, -1)
    diagonal = draws[:, range(n), range(n)].ravel() / std
    off = np.sqrt(2) * draws[:, lower[0], lower[1]].ravel() / std
    assert stats.kstest(diagonal, "norm").pvalue > 1e-6 and stats.kstest(off, "norm").pvalue > 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": np.inf}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"clip_params": 0.0}, "clip_params"),
        ({"clip_fisher": np.nan}, "clip_fisher"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_promises_that_are_none(changes, words):
    arguments = {"epsilon": 1.0, "delta": 1e-5, "clip_params": 1.0, "clip_fisher": 1.0, "rounds": 1} | changes
    with pytest.raises(ValueError, match=words):
        noise.noise_for(arguments.pop("epsilon"), arguments.pop("delta"), **arguments)


@pytest.mark.parametrize(
    ("account", "words"),
    [
        (lambda: noise.epsilon_of(1.0, 0.0), "delta, rounds: got 0.0, 1"),
        (lambda: noise.epsilon_of(1.0, -1e-5), "delta, rounds: got -1e-05, 1"),
        (lambda: noise.epsilon_of(1.0, np.nan), "delta, rounds: got nan, 1"),
        (lambda: noise.epsilon_of(1.0, 1e-5, rounds=0), "delta, rounds: got 1e-05, 0"),
        (lambda: noise.epsilon_of(-1.0, 1e-5), "noise_multiplier: got -1.0"),
        (lambda: noise.delta_of(1.0, 0.0), "noise_multiplier: got 0.0"),
        (lambda: noise.delta_of(-1.0, 1.0), "epsilon: got -1.0"),
        (lambda: example_noise.spent([1.0, 1.0], 0.0), "delta, multipliers: got 0.0, 2"),
        (lambda: example_noise.spent([], 1e-5), "delta, multipliers: got 1e-05, 0"),
        (lambda: example_noise.spent([1.0, 0.0], 1e-5), "multipliers: got 0.0"),
        (lambda: noise._where(lambda _: False, 1.0), "epsilon, delta: got a promise that no number keeps"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(account, words):
    with pytest.raises(ValueError, match=words):
        account()


def test_structures_without_noise_are_refused():
    with pytest.raises(ValueError, match="no noise is defined for LowRank"):
        noise.privatise(payload("low_rank"), START, SILENT)
    for structure in STRUCTURES:
        if structure == "low_rank":
            with pytest.raises(
                ValueError, match="epsilon: no noise is defined for LowRank; allowed are no Fisher, Diag"
            ):
                noise.require_defined(payload(structure).statistics)
        else:
            noise.require_defined(payload(structure).statistics)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_to_be_private_must_be_finite(odd):
    """One NaN makes a norm of NaN, which clips nothing."""
    spoilt = lambda leaf: leaf.at[(0,) * leaf.ndim].set(odd)  # noqa: E731
    sent, guarantee = MOVED["kronecker"], SILENT._replace(noise_multiplier=1.0)
    bias = {**sent.params["fc"], "bias": spoilt(sent.params["fc"]["bias"])}
    inputs, rest = sent.statistics.inputs, {3: spoilt(sent.statistics.rest[3])}
    cases = {
        "params/fc/bias": (sent._replace(params=sent.params | {"fc": bias}), START),
        "start/scale": (sent, START | {"scale": spoilt(START["scale"])}),
        "fisher/inputs/fc/kernel": (
            sent._replace(statistics=replace(sent.statistics, inputs=(inputs[0], spoilt(inputs[1])))),
            START,
        ),
        "fisher/rest/scale": (sent._replace(statistics=replace(sent.statistics, rest=rest)), START),
    }
    for entry, (spoiled, start) in cases.items():
        for function in (noise.privatise, noise.losses):
            with pytest.raises(ValueError, match=f"payload: {entry}: got NaN or infinity"):
                function(spoiled, start, guarantee)


@pytest.mark.parametrize("function", [noise.privatise, noise.losses])
def test_a_start_that_is_not_like_the_parameters_is_refused(function):
    """It would broadcast, and the noise be scaled for something else than what is sent."""
    sent = ff.Payload(1.0, {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"start\['w'\]: got shape \(3, 1\), expected \(3,\)"):
        function(sent, {"w": jnp.zeros((3, 1))}, SILENT)
    with pytest.raises(ValueError, match="start: got a tree"):
        function(sent, {"v": jnp.zeros(3)}, SILENT)


def test_huge_factors_are_clipped_like_others():
    """Norms of float32 factors whose squares overflow are finite, and one factor may be as small as the other large."""
    fisher = MOVED["kronecker"].statistics
    pairs = {"inputs": [a * 1e25 for a in fisher.inputs], "outputs": [g * 1e-25 for g in fisher.outputs]}
    turned = replace(fisher, **{side: tuple(factors) for side, factors in pairs.items()})
    got = noise.privatise(MOVED["kronecker"]._replace(statistics=turned), START, SILENT).statistics
    plain = noise.privatise(MOVED["kronecker"], START, SILENT).statistics
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_clipping_takes_is_told():
    sent = MOVED["diagonal"]._replace(params=jax.tree.map(lambda leaf: leaf + 2.0, START))
    size = sum(leaf.size for leaf in jax.tree.leaves(START))
    guarantee = SILENT._replace(noise_multiplier=1.5)
    told = noise.losses(sent, START, guarantee)
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(sent.statistics.values)]
    assert f"moved by {2 * np.sqrt(size):.3g}, clipped to 2;" in told
    assert f"{sum(n > 0.5 for n in norms)} of {len(norms)} Fisher arrays clipped to 0.5" in told
    assert f"noise of norm {1.5 * 2 * np.sqrt(1 + len(norms)) * 2 * np.sqrt(size):.3g} on" in told

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

pytest.importorskip("dp_accounting", reason="accounting needs pip install 'fedfisher-jax[privacy]'")

from samples import START, STRUCTURES, payload  # noqa: E402

from fedfisher_jax.curvature import Gram, Layer  # noqa: E402
from fedfisher_jax.curvature.structures import _signs as signs  # noqa: E402
from fedfisher_jax.payload import _file as file  # noqa: E402
from fedfisher_jax.payload import _structures as structures  # noqa: E402
from fedfisher_jax.privacy import noise  # noqa: E402

SILENT = noise.Guarantee(1.0, 1e-5, 1, 0.0, clip_params=2.0, clip_fisher=0.5)  # clips, adds nothing
MOVED = {structure: payload(structure) for structure in STRUCTURES if structure != "low_rank"}


def analytic_delta(epsilon, sigma):
    """δ of the Gaussian mechanism with sensitivity one, exactly (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    return special.ndtr(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * special.ndtr(-0.5 / sigma - epsilon * sigma)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 10.0])
@pytest.mark.parametrize("rounds", [1, 7])
def test_accountant_agrees_with_the_exact_formula(sigma, rounds):
    """Rounds of Gaussian noise compose to one with σ/√rounds."""
    expected = optimize.brentq(lambda e: analytic_delta(e, sigma / np.sqrt(rounds)) - 1e-5, 1e-3, 100)
    found = noise.epsilon_of(sigma, 1e-5, rounds)
    assert expected - 1e-6 <= found <= expected * 1.01 + 1e-3  # never less than the truth


def test_least_noise_for_a_promise():
    epsilon = 2.0
    found = noise.noise_for(epsilon, 1e-5, clip_params=1.0)
    assert found.epsilon <= epsilon * (1 + 1e-6) and found.epsilon == pytest.approx(epsilon, rel=0.01)
    assert analytic_delta(epsilon, found.noise_multiplier) == pytest.approx(1e-5, rel=0.05)


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

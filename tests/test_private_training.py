"""DP-SGD against explicit numpy: what is sampled, clipped, added; and the promise against other accountants."""

import audits
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import fedfisher_jax as ff
from fedfisher_jax import payload
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.federate import Private
from fedfisher_jax.privacy import noise

pytest.importorskip("dp_accounting", reason="private training needs pip install 'fedfisher-jax[privacy]'")
from fedfisher_jax.privacy import dp_training  # noqa: E402

N = 24
DRAW = np.random.default_rng(0)


def linear(w, x):
    return x @ w


def training(clip, std, batch_size, epochs=1, places=N, rate=1.0):
    private = Private(clip, std, places)
    return ff.LocalTraining(linear, ff.gaussian(), optax.sgd(rate), epochs, batch_size, private=private)


def test_a_step_is_the_sum_of_clipped_gradients():
    x, y, w = DRAW.normal(size=(N, 3)), DRAW.normal(size=(N, 2)), DRAW.normal(size=(3, 2))
    got = ff.train(training(0.5, 0.0, N, rate=0.1), jnp.asarray(w), ff.examples(x, y), jax.random.key(0))
    want = np.zeros_like(w)
    for one, target in zip(x, y, strict=True):
        gradient = np.outer(one, one @ w - target)
        want += gradient * min(1.0, 0.5 / np.linalg.norm(gradient))
    np.testing.assert_allclose(got.params, w - 0.1 * want / N, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["linen_convolution", "depthwise_and_circular", "attention", "tied_head", "stacked_experts", "layer_norm", "lstm"],
)
def test_clipped_gradients_of_any_layer_are_those_that_optax_clips(name):
    """By inner products of positions, written out, or of a leaf that no layer has: all one norm."""
    model = zoo.CASES[name]()
    x, params = model.x, model.params
    y = DRAW.normal(size=jax.eval_shape(model.apply, params, x).shape)
    loss = lambda p, one, target: ff.gaussian().nll(model.apply(p, one[None])[0], target)  # noqa: E731
    slopes = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y)
    norms = jnp.sqrt(sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(slopes)))
    leaves, treedef = jax.tree.flatten(slopes)
    clip = float(jnp.median(norms))  # so that some are cut and some are not
    want, _ = optax.per_example_global_norm_clip(leaves, clip)
    one = ff.LocalTraining(model.apply, ff.gaussian(), optax.sgd(1.0), 1, len(x), private=Private(clip, 0.0, len(x)))
    got = ff.train(one, params, ff.examples(x, y), jax.random.key(0)).params
    moved = jax.tree.map(lambda new, old: (old - new) * len(x), got, params)
    for found, wanted in zip(jax.tree.leaves(moved), jax.tree.leaves(treedef.unflatten(want)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_every_example_is_taken_by_itself_with_its_probability():
    """Each example moves an entry of its own by clip / batch size each time that it is taken."""
    many, batch = 400, 8
    settings = training(1e-3, 0.0, batch)
    data = ff.examples(jnp.eye(N), -jnp.ones((N, 1)))
    run = jax.jit(jax.vmap(lambda key: ff.train(settings, jnp.zeros((N, 1)), data, key).params[:, 0]))
    taken = -np.asarray(run(jax.random.split(jax.random.key(1), many))) * batch / 1e-3
    np.testing.assert_allclose(taken, np.round(taken), atol=1e-5)
    steps, chance = N // batch, batch / N
    spread = np.sqrt(steps * chance * (1 - chance))
    assert abs(taken.mean() - steps * chance) < 5 * spread / np.sqrt(many * N)
    np.testing.assert_allclose(taken.var(), spread**2, rtol=0.05)
    pairs = np.corrcoef(taken.T)[np.triu_indices(N, 1)]  # a batch of fixed size would have −1 / (N − 1) = −0.043
    assert abs(pairs.mean()) < 5 / np.sqrt(many * len(pairs)) < 0.03


def test_noise_is_of_the_size_that_is_said_and_padding_changes_nothing():
    wide = 4000
    data = ff.examples(jnp.zeros((4, wide)), jnp.zeros((4, 1)))
    got = ff.train(training(0.5, 3.0, 2), jnp.zeros((wide, 1)), data, jax.random.key(2)).params
    np.testing.assert_allclose(np.std(got), 0.5 * 3.0 / 2 * np.sqrt(2), rtol=0.05)  # two steps
    x, y = jnp.asarray(DRAW.normal(size=(N, 3))), jnp.asarray(DRAW.normal(size=(N, 1)))
    mine = ff.examples(x, y)
    longer = mine._replace(indices=jnp.concatenate([mine.indices, jnp.zeros(9, mine.indices.dtype)]))
    one, other = (
        ff.train(training(1.0, 1.0, 5), jnp.zeros((3, 1)), d, jax.random.key(3)).params for d in (mine, longer)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_promise_is_kept_by_other_accountants():
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    found = dp_training.promise(2.0, 1e-5, [400, 1000], batch_size=64, epochs=5, clip_gradients=1.0)
    for size in (400, 1000):
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        step = PoissonSampledDpEvent(64 / size, GaussianDpEvent(found.noise_multiplier))
        accountant.compose(SelfComposedDpEvent(step, 5 * -(-size // 64)))
        tight = accountant.get_epsilon(0.9e-5)
        assert tight <= 2.0
        assert tight > 1.2 or size == 1000  # the smallest client sets the noise, which is not far too much
    everyone = dp_training.epsilon_of(4.0, 1e-5, 10, 64, 9)  # no sampling: nine Gaussian mechanisms
    exact = noise.epsilon_of(4.0 / 3, 1e-5)
    assert exact <= everyone < 1.3 * exact
    assert (
        found.places < 400
        and dp_training.promise(2.0, 1e-5, 3, batch_size=64, epochs=1, clip_gradients=1.0).places == 3
    )


def audit(private, batch_size, epochs, delta, runs=4000):
    """A lower end, but for one in a thousand, of the ε that an attacker sees who knows all but whether one took part.

    The canary alone moves the first parameter, by its clip whenever it is taken; the attacker says that it took part
    where the parameter moved by more than 1.3 times what is expected, fixed beforehand. (ε, δ) allows a rate of right
    answers of e^ε times that of wrong ones, and δ (Jagielski, Ullman and Oprea, arXiv 2006.07709).
    """
    x, y = np.zeros((N, 3)), np.ones((N, 1))
    x[1:, 1:], y[0] = np.random.default_rng(5).normal(size=(N - 1, 2)), 1e3
    settings = ff.LocalTraining(linear, ff.gaussian(), optax.sgd(1.0), epochs, batch_size, private=private)
    run = jax.jit(
        jax.vmap(lambda key, x: ff.train(settings, jnp.zeros((3, 1)), ff.examples(x, y), key).params[0, 0], (0, None))
    )
    expected = private.clip * epochs * -(-N // batch_size) / N
    said = []
    for number, canary in enumerate((1.0, 0.0)):  # of a gradient far beyond the clip, or of none
        x[0, 0] = canary
        moved = np.asarray(run(jax.random.split(jax.random.key(number), runs), jnp.asarray(x)))
        said.append(int((moved > 1.3 * expected).sum()))
    right, wrong = audits.ends(said, runs, 5e-4)
    return np.log(max(right - delta, 1e-9) / wrong)


@pytest.mark.slow
def test_an_audit_finds_no_more_than_promised_and_more_with_half_of_the_noise():
    promised = dp_training.promise(2.0, 0.1, N, batch_size=12, epochs=4, clip_gradients=0.5)
    kept = promised.private
    assert 0 < audit(kept, 12, 4, 0.1) <= 2.0
    assert audit(kept._replace(noise=kept.noise / 2), 12, 4, 0.1) > 2.0


@pytest.mark.parametrize(
    ("private", "words"),
    [
        (Private(-1.0, 1.0, 4), "clip: got -1.0, expected a positive number"),
        (Private(0.0, 1.0, 4), "clip: got 0.0"),
        (Private(np.inf, 1.0, 4), "clip: got inf"),
        (Private(1.0, -1.0, 4), "noise: got -1.0, expected a number of at least 0"),
        (Private(1.0, np.nan, 4), "noise: got nan"),
        (Private(1.0, 1.0, 0), "places: got 0, expected a whole number of at least 1"),
        (Private(1.0, 1.0, 2.5), "places: got 2.5"),
    ],
)
def test_settings_that_would_turn_gradients_round_or_lose_them_are_refused(private, words):
    with pytest.raises(ValueError, match=f"private.{words}"):
        ff.LocalTraining(linear, ff.gaussian(), optax.sgd(1.0), 1, 1, private=private)


def test_a_clip_and_noise_that_are_traced_are_not_looked_at():
    data, w = ff.examples(np.ones((N, 3)), np.ones((N, 2))), jnp.zeros((3, 2))
    step = lambda clip, std: ff.train(training(clip, std, N), w, data, jax.random.key(0)).params  # noqa: E731
    np.testing.assert_allclose(jax.jit(step)(0.5, 0.0), step(0.5, 0.0), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda: step(jnp.asarray(0.5), 0.0))(), step(0.5, 0.0), rtol=1e-6)


def test_what_private_training_refuses():
    with pytest.raises(ValueError, match="squares: got private training"):
        ff.LocalTraining(linear, ff.gaussian(), optax.sgd(1.0), 1, 1, squares=True, private=Private(1.0, 1.0, 1))
    with pytest.raises(ValueError, match="clip_gradients: got 0"):
        dp_training.promise(1.0, 1e-5, 5, batch_size=1, epochs=1, clip_gradients=0.0)
    with pytest.raises(ValueError, match="expected δ in"):
        dp_training.promise(1.0, 1e-5, [], batch_size=1, epochs=1, clip_gradients=1.0)


@pytest.mark.slow
def test_a_silo_measures_so_and_its_file_says_what_was_promised(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = lambda *words: cli.main([str(word) for word in words])  # noqa: E731
    command("init", "--model", "mlp", "--input-shape", 6, "--outputs", 3)
    np.savez("mine.npz", x=DRAW.normal(size=(40, 6)).astype(np.float32), y=DRAW.integers(0, 3, 40))
    private = "--epsilon", 2, "--unit", "example", "--clip-gradients", 0.5
    asked = "measure", "--data", "mine.npz", "--rule", "fedavg", "--epochs", 2, "--batch-size", 20, *private
    models = []
    for out in ("one.safetensors", "two.safetensors"):
        command(*asked, "--out", out)
        sent, header = payload.read(out)
        promised = dp_training.promise(2.0, 1e-5, 40, batch_size=20, epochs=2, clip_gradients=0.5)
        assert header.about.privacy == promised._asdict()
        models.append(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(sent.params)]))
    assert not np.array_equal(*models)  # the noise has no seed
    for number, rule in enumerate(("fedfisher-diag", "fedfisher-diag")):  # beside the parameters, in one promise
        command(*asked, "--rule", rule, "--clip-fisher", 0.1, "--silo", number, "--out", f"{number}.safetensors")
    sent, header = payload.read("0.safetensors")
    beside = {"beside": dp_training.Beside(clip_fisher=0.1)}
    promised = dp_training.promise(2.0, 1e-5, 40, batch_size=20, epochs=2, clip_gradients=0.5, **beside)
    assert header.about.privacy == promised._asdict() and promised.unit.endswith("parameters and statistics")
    least = min(float(leaf.min()) for leaf in jax.tree.leaves(sent.statistics))
    assert least >= 0.9 * 0.1 * promised.noise_statistics / 40  # the noise's largest eigenvalue at least
    command("merge", "0.safetensors", "1.safetensors", "--out", "merged.safetensors")
    capsys.readouterr()
    command("inspect", "one.safetensors")
    assert "one example, added or removed" in capsys.readouterr().out
    for more, words in (
        (("--clip-features", 2), "clip_features: fedavg with privacy of examples trains"),
        (("--rule", "analytic"), "clip_gradients: analytic reads no gradients"),
        (("--rule", "fipa"), "expected one that measures sums over examples: eigenvectors"),
        (("--rule", "regmean", "--trust", "distributed"), "trust: regmean sends a model, too, which has its own noise"),
        (("--share", 0.5), "share: fedavg sends parameters alone"),
    ):
        with pytest.raises(SystemExit):
            command(*asked, *more)
        assert words in capsys.readouterr().err

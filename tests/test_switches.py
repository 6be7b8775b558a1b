"""JAX's debugging switches raise nothing on sound data, and other switches change no result beyond rounding."""

import contextlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedfisher_jax as ff
from fedfisher_jax.federate import measure_clients, merge_clients, train_clients
from fedfisher_jax.merge import DenseSettings, Draws, catalogue
from fedfisher_jax.privacy import noise, secure_merge


@contextlib.contextmanager
def checks():
    """What looks at values, types and leaks, in one pass; all tests run with 64 bits anyway."""
    with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"), jax.checking_leaks():
        yield


SWITCHES = {
    "NaN, promotion and leaks": checks,
    "32 bits": lambda: jax.enable_x64(False),
    "no jit": jax.disable_jit,
}
SIZES = (7, 5)
QUICK = {
    "analytic": {"features": ()},
    "dense": {"settings": DenseSettings(rounds=1, generator_steps=1, batch_size=4)},
    "fedbens": {"steps": 2},
    "pseudo-data": {"draws": Draws(steps=2)},
}


def apply(params, x):
    return jnp.tanh(x @ params["a"] + params["b"]) @ params["w"]


def start():
    draw = np.random.default_rng(0)
    shapes = {"a": (4, 3), "b": (3,), "w": (3, 3)}
    return {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def arrays():
    draw = np.random.default_rng(1)
    return jnp.asarray(draw.normal(size=(sum(SIZES), 4)), jnp.float32), jnp.asarray(draw.integers(0, 3, sum(SIZES)))


def parts():
    return np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])


def targets(likelihood, y):
    one_hot = jnp.asarray(np.eye(3)[np.asarray(y)], jnp.float32)
    return y if likelihood.name == "categorical" else one_hot


LIKELIHOODS = {"categorical": ff.categorical, "gaussian": ff.gaussian, "bernoulli": ff.bernoulli}


def fishers(likelihood):
    x, y = arrays()
    data = ff.examples(x, targets(likelihood, y), jnp.arange(sum(SIZES)) < 9)
    names = ("diagonal", "kronecker", "full", "gram", "low_rank")
    for kind in ("exact", "monte_carlo", "empirical"):
        options = {"kind": kind, "key": jax.random.key(0), "batch_size": 4}
        subspace = ff.curvature.Subspace(rank=2, oversampling=1)
        yield ff.fishers(apply, likelihood, start(), data, structures=names, subspace=subspace, **options)


def trained(likelihood):
    x, y = arrays()
    data = ff.examples(x, targets(likelihood, y))
    training = ff.LocalTraining(apply, likelihood, optax.sgd(0.05, 0.9), epochs=2, batch_size=4, squares=True)
    yield ff.train(training, start(), data, jax.random.key(0))
    yield ff.evaluate(apply, likelihood, start(), x, data.y, batch_size=5)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), start())
    yield ff.ensemble(apply, likelihood, members, x, data.y, batch_size=5)


def exchange(name):
    """All exchanges of a rule, in memory by both doors."""
    x, y = arrays()
    everyone, first = ff.cohort(x, y, parts()), start()
    rule = catalogue.named_rule(name, apply, ff.categorical(), **QUICK.get(name, {}))
    training = ff.LocalTraining(apply, ff.categorical(), optax.sgd(0.05), 1, 4, squares=rule.squares)
    key = jax.random.key(0)
    trained, _ = train_clients(training, first, everyone, key, strategy="sequential")
    update = ff.Update(trained.params, first, trained.squares, training.steps(everyone.sizes))
    for part in ff.merge.exchanges(rule):
        sent, _ = measure_clients(part.measure, update, everyone, key, strategy="sequential")
        merged = merge_clients(part, sent, update.start)
        yield merged
        apart = [jax.tree.map(lambda leaf, n=n: leaf[n], sent) for n in range(len(SIZES))]
        yield ff.merge_payloads(part, apart, update.start).params
        update = ff.Update(None, merged.params)


def stages():
    x, y = arrays()
    everyone, first = ff.cohort(x, y, parts()), start()
    training = ff.LocalTraining(apply, ff.categorical(), optax.sgd(0.05), 1, 4)
    for rule in (ff.fedavg(apply, ff.categorical()), ff.fedfisher(apply, ff.categorical())):
        federation = ff.Federation(training, rule, 2, barrier=True)
        state = ff.rounds.init(federation, first, 2, jax.random.key(0))
        yield ff.rounds.step(federation, state, everyone, strategy="sequential")
    yield ff.personalise(training, first, everyone, everyone, jax.random.key(0), strategy="sequential")
    weigh = lambda shared, client: shared * client  # noqa: E731
    yield ff.fold_clients(weigh, jnp.ones(2), jnp.ones((3, 2)), combine="add", group=2, strategy="sequential")[0]


def what_leaves():
    x, y = arrays()
    rule, first = ff.fisher_merge(apply, ff.categorical()), start()
    halves = (slice(0, 7), slice(7, 12))
    sent = [rule.measure(ff.Update(first), ff.examples(x[h], y[h]), jax.random.key(0)) for h in halves]
    about = ff.payload.About("fisher-merge", "categorical", ff.payload.fingerprint(first), kind="exact")
    yield ff.payload.loads(ff.payload.dumps(sent[0], about), first)[0]
    yield noise.privatise(sent[0], first, noise.noise_for(1.0, 1e-5, clip_params=1.0)).weight
    yield secure_merge(rule, sent)


FUNCTIONS = {
    **{f"fishers {name}": lambda make=make: fishers(make()) for name, make in LIKELIHOODS.items()},
    **{f"training {name}": lambda make=make: trained(make()) for name, make in LIKELIHOODS.items()},
    **{f"rule {name}": lambda name=name: exchange(name) for name in catalogue.RULES},
    "stages": stages,
    "what leaves": what_leaves,
}


def arrays_of(found):  # of a model that brings its network the function, too
    return [leaf for leaf in jax.tree.leaves(found) if hasattr(leaf, "dtype")]


def numbers(found):
    return [np.asarray(leaf, np.float64) for leaf in arrays_of(found) if jnp.issubdtype(leaf.dtype, jnp.floating)]


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_raise_nothing(switch, function):
    with SWITCHES[switch]():
        for result in FUNCTIONS[function]():
            for leaf in numbers(result):
                assert np.isfinite(leaf).all()


@contextlib.contextmanager
def precision(name):
    with jax.default_matmul_precision(name):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "tensorfloat32", "float32"])
@pytest.mark.parametrize("function", ["fishers categorical", "training categorical", "rule fedfisher-kfac", "stages"])
def test_precision_of_products_changes_nothing_beyond_rounding(name, function):
    with precision(name):
        found = [numbers(result) for result in FUNCTIONS[function]()]
    expected = [numbers(result) for result in FUNCTIONS[function]()]
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


THREADS = """
import sys
sys.path[:0] = ["tests"]
import numpy as np
import test_switches as t
for function in ("fishers categorical", "training categorical", "rule fedfisher-kfac"):
    for result in t.FUNCTIONS[function]():
        for leaf in t.numbers(result):
            print(*leaf.ravel().tolist())
"""


@pytest.mark.slow
def test_number_of_threads_changes_nothing_beyond_rounding():
    found = []
    for flags in ("", "--xla_cpu_multi_thread_eigen=false"):
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
            "OMP_NUM_THREADS": "1" if flags else "2",
        }
        done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append([[float(word) for word in line.split()] for line in done.stdout.splitlines()])
    assert len(found[0]) == len(found[1]) > 20
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)

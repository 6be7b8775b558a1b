"""Arguments of the wrong kind at public functions, in a process without the tests' own checks of types."""

import json
import subprocess
import sys

import devices
import pytest

PREAMBLE = """
import json, sys, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np, optax
jax.config.update("jax_enable_x64", False)  # whatever JAX_ENABLE_X64 says: 32 bits, in which integers may wrap
import fedfisher_jax as ff
from fedfisher_jax.federate import merge_clients, train_clients
from fedfisher_jax.privacy import secure_merge

X, Y = jnp.asarray(np.random.default_rng(0).normal(size=(30, 5)), jnp.float32), np.arange(30) % 3
W, KEY, SGD, LIKE = jnp.ones((5, 3)), jax.random.key(0), optax.sgd(0.1), ff.categorical()
apply = lambda w, x: x @ w
DATA = ff.examples(X, Y)
rule = ff.fedavg(apply, LIKE)
sent = [ff.Payload(jnp.ones(()), W)]


def trained(apply=apply, likelihood=LIKE, optimizer=SGD, params=W, data=DATA, key=KEY):
    return ff.train(ff.LocalTraining(apply, likelihood, optimizer, 1, 8), params, data, key)


def training(likelihood=LIKE, optimizer=SGD, epochs=1, batch_size=8, private=None):
    return ff.LocalTraining(apply, likelihood, optimizer, epochs, batch_size, private=private)


def ensemble(members=jnp.stack([W, W]), **options):
    return ff.ensemble(apply, LIKE, members, X, Y, **options)


def wide(*numbers):
    return np.array(numbers) + 2**32


class Module:  # as an Equinox module: its leaves are arrays and functions
    def __init__(self, weight):
        self.weight, self.activation = weight, jax.nn.relu


jax.tree_util.register_pytree_with_keys(
    Module,
    lambda m: ([(jax.tree_util.GetAttrKey(n), getattr(m, n)) for n in ("weight", "activation")], None),
    lambda _, leaves: Module(leaves[0]),
)
module = lambda m, x: x @ m.weight
"""

# name of a case → expression, and what its one-line message says
CASES = {
    "fisher tuple": ("ff.fisher(apply, LIKE, W, (X, Y))", "data: got tuple, expected Examples"),
    "train tuple": ("trained(data=(X, Y))", "data: got tuple, expected Examples"),
    "measure tuple": ("rule.measure(ff.Update(W), (X, Y), KEY)", "data: got tuple, expected Examples"),
    "fisher array": ("ff.fisher(apply, LIKE, W, X)", "data: got ArrayImpl, expected Examples"),
    "fisher likelihood": ("ff.fisher(apply, ff.categorical, W, DATA)", "likelihood: got categorical, expected a "),
    "train likelihood": ("trained(likelihood=ff.gaussian)", "call it: gaussian()"),
    "evaluate likelihood": ("ff.evaluate(apply, ff.bernoulli, W, X, Y)", "call it: bernoulli()"),
    "training likelihood": ("training(likelihood='categorical')", "likelihood: got str, expected a Likelihood"),
    "train number": ("trained(optimizer=0.1)", "optimizer: got float 0.1, expected an optax optimiser"),
    "training number": ("training(optimizer=0.1)", "optimizer: got float 0.1, expected an optax optimiser"),
    "server number": ("ff.Federation(training(), rule, 2, optimizer=1.0)", "optimizer: got float 1.0, expected an"),
    "federation rule": ("ff.Federation(training(), ff.fedavg, 2)", "rule: got fedavg, expected a Rule; call it"),
    "federation name": ("ff.Federation(training(), 'fedavg', 2)", "rule: got str, expected a Rule"),
    "federation training": ("ff.Federation(SGD, rule, 2)", "training: got GradientTransformation"),
    "merge rule": ("ff.merge_payloads(ff.fedavg, sent)", "rule: got fedavg, expected a Rule"),
    "merge clients rule": ("merge_clients('fedavg', sent[0])", "rule: got str, expected a Rule"),
    "secure rule": ("secure_merge(None, sent)", "rule: got NoneType, expected a Rule"),
    "then rule": ("ff.then(rule, ff.fedavg)", "rule: got fedavg, expected a Rule"),
    "float params": ("ff.fisher(lambda w, x: w * x, LIKE, 1.0, DATA)", "params: got float, expected an array"),
    "capture float": ("ff.capture(lambda w, x: w * x, 1.0, X)", "params: got float, expected an array"),
    "train float": ("trained(lambda w, x: w * x, params=1.0)", "params: got float, expected an array"),
    "evaluate float": ("ff.evaluate(lambda w, x: w * x, LIKE, 2.0, X, Y)", "params: got float, expected an array"),
    "module": ("ff.fisher(module, LIKE, Module(W), DATA)", "params.activation: got relu, expected an array"),
    "train module": ("trained(module, params=Module(W))", "params.activation: got relu, expected an array"),
    "integers": ("trained(params=W.astype(jnp.int32))", "params: got int32, expected floating-point numbers"),
    "no params": ("ff.fisher(apply, LIKE, {}, DATA)", "params: got dict without arrays, expected at least one"),
    "empirical labels": ("ff.fisher(apply, LIKE, W, ff.examples(X, Y + 1), kind='empirical')", "y: got 3 (10 of 30"),
    "train labels": ("trained(data=ff.examples(X, Y + 1))", "y: got 3 (10 of 30"),
    "fisher columns": ("ff.fisher(apply, LIKE, W, ff.examples(X[:, 1:], Y))", "x: got examples of shape (4,)"),
    "train columns": ("trained(data=ff.examples(X[:, 1:], Y))", "x: got examples of shape (4,)"),
    "evaluate columns": ("ff.evaluate(apply, LIKE, W, X[:, 1:], Y)", "x: got examples of shape (4,)"),
    "seed": ("ff.federate.run_keys(2**32)", "seed: got 4294967296, expected a whole number from 0 to 4294967295"),
    "epochs": ("training(epochs=2.0)", "epochs: got 2.0, expected a whole number of at least 0"),
    "batch size": ("training(batch_size=1.5)", "batch_size: got 1.5, expected a whole number of at least 1"),
    "predict batch": ("ff._metrics.predict(apply, W, X, batch_size=0)", "batch_size: got 0, expected a whole number"),
    "private": ("training(private=(1.0, 1.0, 4))", "private: got tuple, expected a Private"),
    "wide labels": ("ff.evaluate(apply, LIKE, W, X[:2], wide(0, 1))", "y: got 4294967296, expected integers from -21"),
    "wide list": ("ff.evaluate(apply, LIKE, W, X[:2], wide(0, 1).tolist())", "y: got 4294967296, expected integers"),
    "wide examples": ("ff.examples(X[:2], wide(0, 1))", "y: got 4294967296, expected integers"),
    "wide cohort": ("ff.cohort(X[:2], wide(-(2**32), 1), [np.arange(2)])", "y: got 4294967297, expected integers"),
    "number": ("ff.cohort(X[:1], [0], [np.arange(1)], numbers=[1.5])", "numbers: got [1.5], expected whole numbers"),
    "wide tokens": ("ff.examples({'ids': wide(5)})", "x: got 4294967301, expected integers"),
    "below": ("ff.examples(wide(-(2**33)))", "x: got -4294967296, expected integers"),
    "predict tokens": ("ff._metrics.predict(lambda w, x: w[x], W, wide(0))", "x: got 4294967296, expected integers"),
    "mask": ("ff.evaluate(apply, LIKE, W, X, Y, mask=np.ones(30, int))", "mask: got int32, expected booleans"),
    "no weight": ("ensemble(weights=[0.0, 0.0])", "weights: got [0.0, 0.0], expected none below zero and a positive"),
    "weight below": ("ensemble(weights=[2, -1.5])", "weights: got [2.0, -1.5], expected none below zero"),
    "joint weights": ("ff._ensemble.ensemble_apply(apply, LIKE, [0, 0])", "weights: got [0, 0], expected none below"),
    "scalar member": ("ensemble({'w': W, 'b': jnp.ones(())})", "stacked_params: got leading axes [(), (5,)], expected"),
    "more members": ("ensemble({'w': W, 'b': jnp.ones(3)})", "stacked_params: got leading axes [(3,), (5,)], expected"),
    "no dampings": ("ff.merge.natural_gradient(apply, LIKE, dampings=())", "dampings: got none, expected at least one"),
    "floor below": ("ff.fisher_merge(apply, LIKE, floor=-1)", "floor: got -1, expected"),
    "leaves": ("ff.curvature.Subspace(where=[0]).covered(W)", "where: got list, expected a function or a tuple"),
    "eigenpairs": (
        "ff.curvature.top_eigenpairs(apply, LIKE, W, ff.examples(X, Y + 1), KEY, kind='empirical')",
        "y: got 3 (10 of 30",
    ),
    "hidden": ("ff.models.build('mlp', (4,), 3, hidden=8)", "hidden: got 8, expected a sequence of widths"),
    "no names": ("ff.models.torch_layout.to_torch((W,))", "params: got [0], expected dictionaries of arrays by name"),
    "one structure": (
        "ff.fishers(apply, LIKE, W, DATA, structures='full')",
        "structures: got the text 'full', expected a",
    ),
    "no such leaf": ("ff.curvature.Subspace(where=(99,)).covered(W)", "where: got leaf 99, expected 0 to 0"),
    "strata": ("ff.data.strata('poisson', np.arange(3))", "likelihood: got 'poisson', expected one of categorical"),
    "partitioner": ("ff.data.by_partitioner(None)", "columns: got none, expected at least one"),
    "seed below": ("ff.federate.run_keys(-1)", "seed: got -1, expected a whole number"),
}


@pytest.fixture(scope="module")
def said():
    cases = json.dumps({name: expression for name, (expression, _) in CASES.items()})
    program = f"""{PREAMBLE}
found = {{}}
for name, expression in json.loads({cases!r}).items():
    try:
        eval(expression)
        found[name] = "nothing was raised"
    except (TypeError, ValueError) as error:
        found[name] = str(error)
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_line_that_names_it(name, said):
    assert CASES[name][1] in said[name], said[name]
    assert said[name].isprintable() and len(said[name]) < 400


UNDER_SHARD_MAP = """
from functools import partial
from jax.sharding import Mesh, PartitionSpec as P
each, all_ = P("clients"), P()
mesh = Mesh(jax.devices(), ("clients",))
x, y = X.reshape(2, 15, 5), jnp.asarray(Y).reshape(2, 15)
size = jnp.asarray([15, 9])

def whole(function):
    def on_device(w, x, y, size):
        data = ff.examples(x[0], y[0])._replace(size=size[0])
        return jax.tree.map(lambda leaf: leaf[None], function(w, data))
    mapped = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=(all_, each, each, each), out_specs=each))
    together = mapped(W, x, y, size)
    for n in range(2):
        alone = function(W, ff.examples(x[n], y[n])._replace(size=size[n]))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-5, atol=1e-6)

for structure in ("diagonal", "kronecker", "full", "gram"):
    for kind in ("exact", "monte_carlo", "empirical"):
        whole(lambda w, data: ff.fisher(apply, LIKE, w, data, structure=structure, kind=kind, key=KEY, batch_size=4))
whole(lambda w, data: ff.fisher(apply, LIKE, w, data, structure="low_rank", key=KEY).diagonal())
whole(lambda w, data: ff.fisher(apply, LIKE, w, data, skip=0.1))
for optimizer in (SGD, optax.adam(0.1)):
    settings = ff.LocalTraining(apply, LIKE, optimizer, epochs=2, batch_size=4, squares=True)
    whole(lambda w, data: ff.train(settings, w, data, KEY))
print("as alone")
"""


@pytest.mark.slow
def test_fisher_and_train_under_shard_map_are_those_of_each_device():
    call = [sys.executable, "-c", PREAMBLE + UNDER_SHARD_MAP]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=devices.environment(2))
    assert done.stdout == "as alone\n", done.stderr[-3000:]

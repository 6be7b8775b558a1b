"""Twenty clients, five of them in each round, merged by FedFish; killed at any moment, it goes on where it was."""

import tempfile

import jax
import optax

import fedfisher_jax as ff
from fedfisher_jax.federate import run_rounds

data, likelihood, key = ff.data.load("digits"), ff.categorical(), jax.random.key(0)
network = ff.models.build("mlp", (8, 8, 1), 10, hidden=(32,))
parts = ff.data.split("dirichlet-client", data.train_y, 20, seed=0, alpha=0.1)
clients = ff.cohort(data.train_x, data.train_y, parts)
training = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.05), epochs=4, batch_size=32)
federation = ff.Federation(training, ff.fedfish(network.apply, likelihood), sampled=5)
state = ff.rounds.init(federation, network.init(key), len(parts), key)


def score(params):
    """What is noted after every fifth round."""
    scores = ff.evaluate(network.apply, likelihood, params, data.test_x, data.test_y)
    return {"accuracy": float(scores.accuracy)}


with tempfile.TemporaryDirectory() as folder:  # give it a folder of your own to go on another day
    state, lines = run_rounds(federation, state, clients, 15, folder, evaluate=score, every=5)
for line in lines[4::5]:
    print(f"round {line['round']:2} {100 * line['accuracy']:.1f} %")

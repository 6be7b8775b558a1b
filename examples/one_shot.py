"""Five clients with uneven digits: merge their models once, by several rules, and compare with what is possible."""

import optax

import fedfisher_jax as ff
from fedfisher_jax.federate import Simulation, compare, run_keys

data = ff.data.load("digits")
parts = ff.data.split("dirichlet-client", data.train_y, 5, seed=0, alpha=0.1)
network, likelihood = ff.models.build("mlp", (8, 8, 1), 10), ff.categorical()
key = run_keys(0)
training = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.05, 0.9), epochs=10, batch_size=64)
clients = ff.cohort(data.train_x, data.train_y, parts)
simulation = Simulation(training, network.init(key.init), clients, data.test_x, data.test_y)
rules = {
    "fedavg": ff.fedavg(network.apply, likelihood),
    "fedfisher-kfac": ff.fedfisher(network.apply, likelihood),
    "regmean-kron": ff.merge.regmean_kron(network.apply, likelihood),
}
for result in compare(simulation, rules, key):
    if result.kind in ("rule", "reference"):
        print(f"{result.name:16} {100 * result.value['accuracy']:.1f} %")

"""Three clients of whose payloads the server sees the sum alone; needs `pip install 'fedfisher-jax[privacy]'`."""

import jax
import optax

import fedfisher_jax as ff

data, likelihood, key = ff.data.load("digits"), ff.categorical(), jax.random.key(0)
network = ff.models.build("mlp", (8, 8, 1), 10, hidden=(16,))
start, rule = network.init(key), ff.merge.regmean_kron(network.apply, likelihood)  # its payloads add up
training = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.05, 0.9), epochs=10, batch_size=32)
payloads = []
for number, part in enumerate(ff.data.split("dirichlet-client", data.train_y, 3, seed=0, alpha=0.3)):
    mine, own = ff.examples(data.train_x[part], data.train_y[part]), jax.random.fold_in(key, number)
    payloads.append(rule.measure(ff.Update(ff.train(training, start, mine, own).params), mine, own))
plain, secure = ff.merge_payloads(rule, payloads), ff.privacy.secure_merge(rule, payloads)
for name, merged in (("plain sum", plain), ("secure sum", secure)):
    scores = ff.evaluate(network.apply, likelihood, merged.params, data.test_x, data.test_y)
    print(f"{name:10} {100 * scores.accuracy:.1f} %")

"""Three silos write one file each, in half of FedAvg's bits; the server checks and merges the files."""

import tempfile
from pathlib import Path

import jax
import optax

import fedfisher_jax as ff

data, likelihood, key = ff.data.load("digits"), ff.categorical(), jax.random.key(0)
network = ff.models.build("mlp", (8, 8, 1), 10, hidden=(32,))
start, rule = network.init(key), ff.fedfisher(network.apply, likelihood)
training = ff.LocalTraining(network.apply, likelihood, optax.sgd(0.05, 0.9), epochs=10, batch_size=32)
parts = ff.data.split("dirichlet-client", data.train_y, 3, seed=0, alpha=0.3)
with tempfile.TemporaryDirectory() as folder:
    files = [Path(folder) / f"silo{number}.safetensors" for number in range(3)]
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):  # each silo
        mine, own = ff.examples(data.train_x[part], data.train_y[part]), jax.random.fold_in(key, number)
        sent = rule.measure(ff.Update(ff.train(training, start, mine, own).params), mine, own)
        about = ff.payload.About(rule.name, "categorical", ff.payload.fingerprint(start), kind="exact", silo=number)
        bits = ff.payload.write(file, sent, about, ff.payload.plan.fit(sent, about, 0.5))
        print(f"{file.name}: {bits / 8e3:.0f} kB")
    received = ff.payload.read_all(files, start)  # the server
merged = ff.merge_payloads(rule, [payload for payload, _ in received])
scores = ff.evaluate(network.apply, likelihood, merged.params, data.test_x, data.test_y)
print(f"merged {100 * scores.accuracy:.1f} %")

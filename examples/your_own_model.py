"""Merge models that were trained elsewhere: any function of parameters; here Flax NNX and a loop of your own."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import fedfisher_jax as ff


class Network(nnx.Module):
    """Two layers."""

    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(64, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        """Return logits."""
        return self.head(nnx.relu(self.hidden(x)))


data, likelihood, optimizer = ff.data.load("digits"), ff.categorical(), optax.adam(0.01)
x, y = data.train_x.reshape(-1, 64), data.train_y
graph, start = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
apply = lambda params, x: nnx.merge(graph, params)(x)  # noqa: E731
slope = jax.jit(jax.grad(lambda p, x, y: optax.softmax_cross_entropy_with_integer_labels(apply(p, x), y).mean()))
update = jax.jit(optimizer.update)
rule, payloads = ff.fedfisher(apply, likelihood), []
for part in ff.data.split("dirichlet-client", y, 3, seed=0, alpha=0.3):
    params, state = start, optimizer.init(start)
    for _ in range(50):  # your own training, with whatever it needs
        change, state = update(slope(params, x[part], y[part]), state)
        params = optax.apply_updates(params, change)
    payloads.append(rule.measure(ff.Update(params), ff.examples(x[part], y[part]), jax.random.key(0)))
merged = ff.merge_payloads(rule, payloads).params
scores = ff.evaluate(apply, likelihood, merged, data.test_x.reshape(-1, 64), jnp.asarray(data.test_y))
print(f"merged {100 * scores.accuracy:.1f} %")

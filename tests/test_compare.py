"""One round of every rule, with a likelihood that knows no right and wrong."""

import jax.numpy as jnp
import numpy as np
import optax

import fedfisher_jax as ff
from fedfisher_jax.federate import _one_shot as one_shot


def test_a_gaussian_has_losses_and_no_accuracies():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.normal(size=(20, 2)))
    who = ff.cohort(x, y, [np.arange(10), np.arange(10, 20)])
    apply = lambda params, x: x @ params  # noqa: E731
    train = ff.LocalTraining(apply, ff.gaussian(), optax.sgd(0.1), 3, 4)
    problem = one_shot.Simulation(train, jnp.zeros((3, 2)), who, x, y)
    found = list(one_shot.compare(problem, {"fedavg": ff.fedavg(apply, ff.gaussian())}, one_shot.run_keys(0)))
    scored = {(one.kind, one.name): one.value for one in found if one.kind != "training"}
    references = {"best_local", "ensemble", "ensemble_weighted", "ensemble_by_class"}
    assert references == {name for kind, name in scored if kind == "reference"}
    assert all("accuracy" not in value and np.isfinite(value["loss"]) for value in scored.values())
    losses = [scored["client", str(number)]["loss"] for number in range(2)]
    assert scored["reference", "best_local"] == {"loss": min(losses), "client": int(np.argmin(losses))}

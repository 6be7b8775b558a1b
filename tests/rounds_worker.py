"""A federation in a process of its own: rounds_worker.py FOLDER ROUND, killed in that round if it is not 0."""

import os
import signal
import sys

import jax
import numpy as np
import optax

import fedfisher_jax as ff
from fedfisher_jax import models
from fedfisher_jax.federate import _checkpoints as resume
from fedfisher_jax.federate import _variants as variants
from fedfisher_jax.federate import rounds


def main() -> None:
    """Runs ten rounds with state of every kind and prints a digest of the parameters."""
    folder, kill = sys.argv[1], int(sys.argv[2])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 3, 40)
    network = models.build("mlp", (6,), 3, hidden=(5,))
    train = ff.LocalTraining(network.apply, ff.categorical(), optax.sgd(0.1), epochs=1, batch_size=4)
    rule = ff.fedavg(network.apply, ff.categorical())
    plan = rounds.Federation(train, rule, 2, optax.adam(0.1), variants.scaffold(0.1), barrier=True)
    who = ff.cohort(x, y, np.split(np.arange(40), 8))
    state = rounds.init(plan, network.init(jax.random.key(0)), 8, jax.random.key(1))

    def done(line: dict) -> None:
        if line["round"] == kill - 1:  # the next one is under way
            os.kill(os.getpid(), signal.SIGKILL)

    state, _ = resume.run_rounds(plan, state, who, 10, folder, on_record=done, strategy="sequential", every=2)
    print(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]).tobytes().hex())


if __name__ == "__main__":
    main()

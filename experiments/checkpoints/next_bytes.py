"""Fine-tuned transformers merged by what people use, and by our rules: the next byte of Python's standard library.

A small transformer learns the next byte of one half of the modules of Python's standard library. Four clients each
fine-tune it on one module of the other half: those with most text. Every merged model is scored on every client's test
windows; `methods` tells which, `scoring` how.
"""

import dataclasses
from functools import cache
from itertools import chain
from typing import Any

import jax
import numpy as np

from experiments.checkpoints.methods import Data, Part, Trained, fine_tuned, others, ours, trainer
from experiments.checkpoints.scoring import over_seeds, report, scored
from experiments.lib import common
from fedfisher_jax import data, models

LENGTH, CLIENTS = 32, 4


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        windows: A client's training windows, at most; an eighth more validate.
        tested: A client's test windows, at most.
        measured: Training windows on which a client measures.
        first_windows: Windows of each module for the pre-training, at most.
        first_epochs: Epochs of the pre-training.
        epochs: Epochs of the clients.
        width: Width of the transformer's stream.
        seeds: Each draws halves, start and training.
    """

    windows: int = 1024
    tested: int = 256
    measured: int = 256
    first_windows: int = 512
    first_epochs: int = 2
    epochs: int = 4
    width: int = 64
    seeds: int = 3


QUICK = {"windows": 64, "tested": 16, "measured": 8, "first_windows": 8, "epochs": 1, "width": 16, "seeds": 1}


@cache
def text(seed: int) -> data.TextData:
    """Windows of bytes; a seed draws the halves."""
    return data.text_clients(data.standard_library(), length=LENGTH, seed=seed)


@cache
def network_of(width: int, tied: bool = False) -> models.Network:
    """One object per setting, so that it is traced once."""
    return models.build_transformer(256, LENGTH, width=width, tied=tied)


def inputs(windows: np.ndarray) -> Data:
    """Windows [n, T + 1] as inputs and next bytes."""
    return windows[:, :-1], windows[:, 1:]


def parts_of(found: data.TextData, windows: int, tested: int) -> list[Part]:
    """The clients: of the half that does not pre-train those modules with most training windows."""
    largest = sorted(found.personal, key=lambda n: (-len(found.train[n]), n))[:CLIENTS]
    held = windows // 8
    return [
        Part(
            found.clients[n],
            inputs(found.windows[found.train[n][:windows]]),
            inputs(found.windows[found.train[n][windows : windows + held]]),
            inputs(found.windows[found.test[n][:tested]]),
        )
        for n in largest
    ]


def trained(
    network: models.Network, seed: int, windows: int, tested: int, first_windows: int, first_epochs: int, epochs: int
) -> tuple[Trained, jax.Array]:
    """Pre-train, and let four clients fine-tune: the models, and a key."""
    found = text(seed)
    init, key, *keys = jax.random.split(jax.random.key(seed), 2 + CLIENTS + 1)
    common_text = np.concatenate([found.train[n][:first_windows] for n in found.pretrain])
    begin = trainer(network.apply, first_epochs, 2e-3)
    start = begin(jax.jit(network.init)(init), inputs(found.windows[common_text]), key)
    return fine_tuned(network.apply, start, parts_of(found, windows, tested), epochs, keys), keys[0]


def run(seed: int, measured: int, width: int, **settings: Any) -> dict[str, Any]:
    """All merges of a seed."""
    found, key = trained(network_of(width), seed, **settings)
    return scored(found, chain(others(found, seed), ours(found, measured, "monte_carlo", key)))


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    report(
        settings.out,
        over_seeds(settings, run),
        f"Accuracy of the next byte in %, {CLIENTS} clients, windows of {LENGTH}",
    )


if __name__ == "__main__":
    main()

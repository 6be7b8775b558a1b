"""Privacy of every example in training: how much noise keeps (ε, δ), by Google's dp-accounting.

The guarantee is about one example that is added or removed, with a number of examples that is public (it sets the
sampling probability). A step is a Poisson-sampled Gaussian mechanism; steps compose by Rényi divergences (Mironov,
Talwar and Zhang 2019, arXiv 1908.10530), which dp-accounting computes. Statistics that are measured at the trained
parameters, a Fisher say, are one more Gaussian mechanism (`example_noise`), which composes with the steps into one
promise; without a `share` for them what is promised is about the parameters alone. The draws are JAX's: the key must be
secret and have as much randomness as keys hold, 64 bits (`secret_key`).
"""

import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load where they are used

from ..federate._private import Private
from .noise import _where, delta_of

TRUNCATED = 0.1  # of δ, for samples that are larger than there is room for
ALONE = "one example, added or removed; the parameters alone"
WHOLE = "one example, added or removed; parameters and statistics"
MOST = 1e6  # noise multiplier of steps that tell next to nothing
ORDERS = (*(2 + x / 10 for x in range(60)), *range(8, 64), 128, 256, 512)  # of divergences; series below 2 do not end


class Beside(NamedTuple):
    """One release of statistics at each trained model: a Fisher, input or class moments, or a head's sums.

    Attributes:
        share: the part of the privacy, in units of 1/σ² of one Gaussian release; the steps of training have the rest.
        clip_fisher: largest norm of what an example adds to each array of a Fisher.
        clip_features: largest norm of an example's features, or inputs.
    """

    share: float = 0.25
    clip_fisher: float = 1.0
    clip_features: float = 1.0


class Promise(NamedTuple):
    """What was promised about each example, and how it is kept."""

    epsilon: float
    delta: float
    releases: int  # trainings, in all, that the same example is in
    noise_multiplier: float
    clip_gradients: float
    batch_size: int  # mean size of a sample
    epochs: int
    places: int
    unit: str = ALONE
    share: float = 0.0  # of the privacy, for the statistics beside the parameters
    noise_statistics: float = 0.0  # their noise multiplier
    clip_fisher: float = 1.0  # largest norm of what an example adds to each array of a Fisher
    clip_features: float = 1.0  # largest norm of an example's features, or inputs

    @property
    def private(self) -> Private:
        """What `LocalTraining` takes."""
        return Private(self.clip_gradients, self.noise_multiplier, self.places)


def promise(
    epsilon: float,
    delta: float,
    sizes: int | Iterable[int],
    *,
    batch_size: int,
    epochs: int,
    clip_gradients: float,
    releases: int = 1,
    beside: Beside | None = None,
) -> Promise:
    """Find the least noise that keeps (ε, δ) for every example of every client.

    Args:
        epsilon: privacy loss, positive.
        delta: its exception, between 0 and 1; much less than one over a client's number of examples.
        sizes: the clients' numbers of examples.
        batch_size: mean number of examples in a step.
        epochs: local epochs, of ⌈n / batch_size⌉ steps.
        clip_gradients: largest Euclidean norm of an example's gradient.
        releases: trainings, in all, that an example takes part in: rounds, say.
        beside: what is released beside each trained model; None: nothing.

    Raises:
        ValueError: numbers out of range.
        ImportError: dp-accounting is not installed.
    """
    numbers = sorted(set(map(int, sizes)) if isinstance(sizes, Iterable) else {int(sizes)})
    clips = {} if beside is None else {name: value for name, value in beside._asdict().items() if name != "share"}
    for name, value in ({"epsilon": epsilon, "clip_gradients": clip_gradients} | clips).items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a positive number")
    counts = (batch_size, epochs, releases, *(numbers or [0]))
    if not 0 < delta < 1 or min(counts) < 1:
        raise ValueError(
            f"delta, sizes, batch_size, epochs, releases: got {delta}, {counts}, expected δ in (0, 1), ≥ 1"
        )
    if beside is not None and not 0 < beside.share < 1:
        raise ValueError(f"share: got {beside.share}, expected a number between 0 and 1")
    noise, kept = 0.0, (1 - TRUNCATED) * delta
    more = {} if beside is None else {"beside": _beside(epsilon, kept, beside.share, releases), "releases": releases}
    if beside is not None and epsilon_of(MOST, kept, 1, 1, 1, **more) > epsilon:  # Rényi divergences are not exact
        raise ValueError(f"share: got {beside.share}, which leaves nothing for training, expected less")
    for size in numbers:
        spent = lambda sigma, n=size: epsilon_of(sigma, kept, n, batch_size, epochs * releases, **more)  # noqa: E731
        if noise == 0 or spent(noise) > epsilon:
            noise = _where(lambda sigma: spent(sigma) <= epsilon, 1.0, 1e-4)
    lost = TRUNCATED * delta / (1 + math.exp(epsilon))
    places = max(_places(n, batch_size, lost / (epochs * releases * -(-n // batch_size))) for n in numbers)
    found = Promise(epsilon, delta, releases, noise, clip_gradients, batch_size, epochs, places)
    if beside is None:
        return found
    return found._replace(unit=WHOLE, noise_statistics=more["beside"], **beside._asdict())


def epsilon_of(
    noise: float, delta: float, size: int, batch_size: int, epochs: int, beside: float = 0.0, releases: int = 0
) -> float:
    """Compute ε of so many epochs over `size` examples, with room for every sample, and of releases beside them.

    Args:
        noise: noise multiplier.
        delta: probability of the exception.
        size: the client's number of examples.
        batch_size: mean number of examples in a step.
        epochs: epochs of ⌈size / batch_size⌉ steps.
        beside: noise multiplier of each release of statistics.
        releases: how many of these.
    """
    dp, rdp = _accounting()
    step = dp.PoissonSampledDpEvent(min(1.0, batch_size / size), dp.GaussianDpEvent(noise))
    accountant = rdp.RdpAccountant(ORDERS)
    accountant.compose(dp.SelfComposedDpEvent(step, epochs * -(-size // batch_size)))
    if releases:
        accountant.compose(dp.GaussianDpEvent(beside), releases)
    return float(accountant.get_epsilon(delta))


def secret_key() -> jax.Array:
    """Draw a random key from the operating system, of all the randomness that a key holds."""
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(os.urandom(8), np.uint32)), impl="threefry2x32")


def _beside(epsilon: float, delta: float, share: float, releases: int) -> float:
    """Noise multiplier of each of so many releases that together have this share of one Gaussian release's privacy."""
    return _where(lambda sigma: delta_of(epsilon, sigma) <= delta, 1.0) * math.sqrt(releases / share)


def _places(size: int, batch_size: int, chance: float) -> int:
    """Room that a sample exceeds at most with this probability."""
    return min(size, int(scipy.stats.binom.isf(chance, size, min(1.0, batch_size / size))) + 1)


def _accounting() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: private training needs pip install 'fedfisher-jax[privacy]'") from error
    return dp_accounting, rdp

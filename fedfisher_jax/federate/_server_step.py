"""The server's step over rounds, for every rule alike: optax's optimisers, and two of our own beside them.

The gradient that an optimiser of `Federation` is given is the start minus the merged model. `optax.sgd(0.25)` goes a
quarter of the way, `optax.sgd(1.0, 0.5)` has momentum, and `optax.chain(clip_to_clients(), optax.sgd(0.25))` shortens
the step first.
"""

from typing import Any

import optax

from .._trees import clipped

PyTree = Any
SERVER_RATE = 0.01


def clip_to_clients(times: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Shorten the server's step to at most `times` √Σ ‖θ_i − θ‖², over a round's clients i that came to θ_i from θ.

    Clients that move along directions that no other one knows are followed in full by a step of exactly that length;
    a longer one goes further than all of them together. It is for `Federation.optimizer`, which gives the lengths.

    Args:
        times: a positive number.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> import jax.numpy as jnp, fedfisher_jax as ff
        >>> clip = ff.federate.clip_to_clients(2.0)
        >>> clip.update(jnp.asarray([3.0, 4.0]), clip.init(None), clients_length=jnp.asarray(0.625))[0].tolist()
        [0.75, 1.0]
    """
    if not times > 0:
        raise ValueError(f"times: got {times}, expected a positive number")

    def update(updates: PyTree, state: Any, params: PyTree = None, **more: Any) -> tuple[Any, Any]:
        if "clients_length" not in more:
            raise TypeError("clients_length: got none, expected √Σ ‖θ_i − θ‖², which a federation over rounds gives")
        return clipped(updates, times * more["clients_length"])[0], state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def server_adam(learning_rate: float = SERVER_RATE) -> optax.GradientTransformation:
    """Adam for a server of few rounds: little momentum (b1 0.5, b2 0.99, ε 1e-8), for FedAvg and FedFish alike.

    FedOpt (arXiv 2003.00295) has Adam at the server. Optax's b1 of 0.9 needs more rounds than a few to get going; this
    one was the best for both rules in a search over server optimisers (docs/fisher-over-rounds.md).

    Args:
        learning_rate: about what each parameter moves in a round.
    """
    return optax.adam(learning_rate, b1=0.5, b2=0.99, eps=1e-8)

"""Variants of local training: what a client's optimiser corrects for, and what client and server remember for it.

Each is written as gradients that are changed before the optimiser sees them, so any optax optimiser runs it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..merge._rule import Update

PyTree = Any


class Variant(NamedTuple):
    """A variant as pure functions; `own` is remembered for each registered client, `common` by the server.

    Attributes:
        optimizer: (the plain optimiser, the round's start, own, common) → the local optimiser.
        own: params → shapes of what is remembered for a client; it starts at zero.
        common: params → what the server starts with.
        after: (what training left, own, common) → (own for the next time, what is sent beside the payload).
        server: (merged params, common, mean over sampled clients of what was sent times n_i over the mean of all
            clients' n_i, share of clients sampled) → (params, common). Papers weigh clients equally; rules here weigh
            them by examples, and so must what corrects them, or it pulls to another optimum.
    """

    optimizer: Callable[[optax.GradientTransformation, PyTree, PyTree, PyTree], optax.GradientTransformation]
    own: Callable[[PyTree], PyTree]
    common: Callable[[PyTree], PyTree]
    after: Callable[[Update, PyTree, PyTree], tuple[PyTree, PyTree]]
    server: Callable[[PyTree, PyTree, PyTree, float], tuple[PyTree, PyTree]]


def fedprox(mu: float) -> Variant:
    """FedProx (arXiv 1812.06127): the local objective L_i(θ) + μ/2 ‖θ − θ⁽ᵏ⁾‖².

    Raises:
        ValueError: μ negative.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from fedfisher_jax.federate import fedprox
        >>> start, now = jnp.zeros(2), jnp.ones(2)
        >>> optimizer = fedprox(0.5).optimizer(optax.sgd(1.0), start, None, None)
        >>> optimizer.update(jnp.zeros(2), optimizer.init(now), now)[0].tolist()  # pulled back to the start
        [-0.5, -0.5]
    """
    if not mu >= 0:
        raise ValueError(f"mu: got {mu}, expected a number of at least 0")

    def optimizer(plain: Any, start: PyTree, own: PyTree, common: PyTree) -> optax.GradientTransformation:
        del own, common
        return optax.chain(changed(lambda g, p: jax.tree.map(lambda a, b, c: a + mu * (b - c), g, p, start)), plain)

    nothing = lambda params: None  # noqa: E731
    return Variant(optimizer, nothing, nothing, lambda *_: (None, None), lambda params, *_: (params, None))


def scaffold(learning_rate: float) -> Variant:
    """SCAFFOLD (arXiv 1910.06378, algorithm 1, option II): gradients g − c_i + c with control variates.

    After K local steps c_i ← c_i − c + (θ⁽ᵏ⁾ − θ_i) / (K η), with none c_i stays; the server adds the share of clients
    sampled times their mean change, weighted by examples, to c. A client sends twice the parameters.

    Args:
        learning_rate: η of the local optimiser, plain SGD. With momentum β use η / (1 − β), the size of its steps.

    Raises:
        ValueError: learning rate not positive.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from fedfisher_jax.federate import scaffold
        >>> params, own, common = jnp.zeros(2), jnp.ones(2), jnp.full(2, 3.0)
        >>> optimizer = scaffold(0.1).optimizer(optax.sgd(1.0), params, own, common)
        >>> optimizer.update(jnp.ones(2), optimizer.init(params), params)[0].tolist()  # −(g − c_i + c)
        [-3.0, -3.0]
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate: got {learning_rate}, expected a positive number")

    def optimizer(plain: Any, start: PyTree, own: PyTree, common: PyTree) -> optax.GradientTransformation:
        del start
        corrected = lambda g, p: jax.tree.map(lambda a, b, c: a - b + c, g, own, common)  # noqa: E731
        return optax.chain(changed(corrected), plain)

    def after(update: Update, own: PyTree, common: PyTree) -> tuple[PyTree, PyTree]:
        def control(mine: Any, everyone: Any, start: Any, end: Any) -> Any:
            path = (jnp.maximum(update.steps, 1) * learning_rate).astype(start.dtype)
            return jnp.where(update.steps > 0, mine - everyone + (start - end) / path, mine)

        new = jax.tree.map(control, own, common, update.start, update.params)
        return new, jax.tree.map(jnp.subtract, new, own)

    def server(params: PyTree, common: PyTree, sent: PyTree, share: float) -> tuple[PyTree, PyTree]:
        return params, jax.tree.map(lambda c, d: c + share * d, common, sent)

    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    return Variant(optimizer, zeros, zeros, after, server)


def feddyn(alpha: float) -> Variant:
    """FedDyn (arXiv 2111.04263, algorithm 1): local objectives L_i(θ) − ⟨h_i, θ⟩ + α/2 ‖θ − θ⁽ᵏ⁾‖².

    After training h_i ← h_i − α (θ_i − θ⁽ᵏ⁾); the server keeps h ← h − α · share · mean (θ_i − θ⁽ᵏ⁾) and moves to the
    merged model − h/α, means weighted by examples. It is made for averages: FedAvg as the rule.

    Raises:
        ValueError: α not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: got {alpha}, expected a positive number")

    def optimizer(plain: Any, start: PyTree, own: PyTree, common: PyTree) -> optax.GradientTransformation:
        del common

        def pulled(g: PyTree, p: PyTree) -> PyTree:
            return jax.tree.map(lambda a, h, b, c: a - h + alpha * (b - c), g, own, p, start)

        return optax.chain(changed(pulled), plain)

    def after(update: Update, own: PyTree, common: PyTree) -> tuple[PyTree, PyTree]:
        del common
        moved = jax.tree.map(jnp.subtract, update.params, update.start)
        return jax.tree.map(lambda h, d: h - alpha * d, own, moved), moved

    def server(params: PyTree, common: PyTree, sent: PyTree, share: float) -> tuple[PyTree, PyTree]:
        common = jax.tree.map(lambda h, d: h - alpha * share * d, common, sent)
        return jax.tree.map(lambda p, h: p - h / alpha, params, common), common

    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    return Variant(optimizer, zeros, zeros, after, server)


def changed(function: Callable[[PyTree, PyTree], PyTree]) -> optax.GradientTransformation:
    """Gradients as `function(gradients, params)` says."""
    return optax.stateless(lambda gradients, params: function(gradients, params))

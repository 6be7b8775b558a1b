"""Examples for the theory's experiments: unit inputs, bounded targets, dealt to M clients."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from .two_layer import ClientData, clients


def unit(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Scale rows to Euclidean norm one; zero rows stay zero."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1)


def gaussian(
    key: Key[Array, ""], num_clients: int, examples: int, inputs: int, shift: float | Array = 0.0, dtype=jnp.float32
) -> ClientData:
    """Draw random inputs and random targets: nothing to learn, everything to remember.

    x = (g + shift √d μ_i)/‖·‖ with g ~ N(0, I) and μ_i a random unit direction of client i, y = clip(N(0, 1), −1, 1).

    Args:
        key: Random key.
        num_clients: M.
        examples: n per client.
        inputs: d.
        shift: Heterogeneity of the clients' inputs: zero for one common distribution; large means that a client's
            inputs are nearly one direction, different from those of the other clients.
        dtype: Type of inputs and targets.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fedfisher_jax.theory import inputs
        >>> data = inputs.gaussian(jax.random.key(0), num_clients=2, examples=5, inputs=3)
        >>> data.x.shape, data.y.shape
        ((2, 5, 3), (2, 5))
        >>> bool(jnp.allclose(jnp.linalg.norm(data.x, axis=-1), 1, atol=1e-6))
        True
    """
    key_x, key_y, key_mean = jax.random.split(key, 3)
    mean = unit(jax.random.normal(key_mean, (num_clients, 1, inputs), dtype))
    x = jax.random.normal(key_x, (num_clients, examples, inputs), dtype) + shift * inputs**0.5 * mean
    y = jnp.clip(jax.random.normal(key_y, (num_clients, examples), dtype), -1, 1)
    return clients(unit(x), y)


def teacher(
    key: Key[Array, ""], num_clients: int, examples: int, inputs: int, noise: float, dtype=jnp.float32
) -> ClientData:
    """Draw Gaussian unit inputs with targets of a noisy linear teacher: y = √d vᵀx + noise N(0, 1), v a random unit."""
    key_v, key_noise, key_x = jax.random.split(key, 3)
    x = gaussian(key_x, num_clients, examples, inputs, dtype=dtype).x
    y = inputs**0.5 * x @ unit(jax.random.normal(key_v, (inputs,), dtype))
    return clients(x, y + noise * jax.random.normal(key_noise, y.shape, dtype))


def images(
    key: Key[Array, ""], x: np.ndarray, y: np.ndarray, classes: tuple[int, int], num_clients: int, examples: int
) -> ClientData:
    """Take real inputs, unit-normalised, of two classes with targets −1 and +1, drawn without replacement.

    Args:
        key: Random key.
        x: Images [N, ...] on the host.
        y: Labels [N].
        classes: The two labels.
        num_clients: M.
        examples: n per client; each client gets both classes in random proportion.

    Raises:
        ValueError: If there are fewer than M n images of the two classes.
    """
    chosen = np.flatnonzero(np.isin(y, classes))
    if len(chosen) < num_clients * examples:
        raise ValueError(f"{num_clients} clients x {examples} examples need more than the {len(chosen)} of {classes}")
    index = jax.random.permutation(key, jnp.asarray(chosen))[: num_clients * examples]
    flat = unit(jnp.asarray(x.reshape(len(x), -1))[index])
    target = jnp.where(jnp.asarray(y)[index] == classes[1], 1, -1).astype(flat.dtype)
    return clients(flat.reshape(num_clients, examples, -1), target.reshape(num_clients, examples))

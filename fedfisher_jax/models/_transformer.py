"""A small decoder-only transformer: the next token at every position.

Every product with a parameter is a plain dense layer, so that Kronecker factors see it, and the embedding is a table,
or a table and a head. Positions and the gains of the norms are read otherwise: they are in `capture(...).fallback` and
get diagonal blocks.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._build import Network


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each normalised before and added to what it reads.

    Attributes:
        heads: attention heads; they divide the width.
        expansion: hidden units of the perceptron, as a multiple of the width.
        use_bias: whether dense layers and norms have biases.
    """

    heads: int
    expansion: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """The stream after this block."""
        n, t, width = x.shape
        seen = nn.LayerNorm(use_bias=self.use_bias, name="norm1")(x)
        query, key, value = (
            nn.Dense(width, use_bias=self.use_bias, name=name)(seen).reshape(n, t, self.heads, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
        past = jnp.tril(jnp.ones((t, t), bool))
        attention = nn.softmax(jnp.where(past, scores, jnp.finfo(scores.dtype).min))
        read = jnp.einsum("nhqk,nkhd->nqhd", attention, value).reshape(n, t, width)
        x = x + nn.Dense(width, use_bias=self.use_bias, name="out")(read)
        hidden = nn.LayerNorm(use_bias=self.use_bias, name="norm2")(x)
        hidden = nn.gelu(nn.Dense(self.expansion * width, use_bias=self.use_bias, name="fc1")(hidden))
        return x + nn.Dense(width, use_bias=self.use_bias, name="fc2")(hidden)


class Transformer(nn.Module):
    """Tokens and learned positions, blocks, a norm, and a head without bias.

    Attributes:
        vocab: number of different tokens.
        length: positions, at most.
        width: numbers per position in the stream.
        depth: blocks.
        heads: attention heads; they divide the width.
        expansion: see `Block`.
        tied: whether the head is the transposed embedding.
        use_bias: see `Block`.
    """

    vocab: int
    length: int
    width: int = 64
    depth: int = 2
    heads: int = 2
    expansion: int = 4
    tied: bool = False
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Int[Array, "n t"]) -> Float[Array, "n t v"]:
        """Logits of the token after each position."""
        start = nn.initializers.normal(self.width**-0.5)  # logits of a tied head start with unit variance
        embedding = self.param("embedding", start, (self.vocab, self.width), jnp.float32)
        positions = self.param("positions", start, (self.length, self.width), jnp.float32)
        stream = embedding[x] + positions[: x.shape[1]]
        for number in range(self.depth):
            stream = Block(self.heads, self.expansion, self.use_bias, name=f"block{number + 1}")(stream)
        stream = nn.LayerNorm(use_bias=self.use_bias, name="norm")(stream)
        if self.tied:
            return stream @ embedding.T
        return nn.Dense(self.vocab, use_bias=False, kernel_init=start, name="head")(stream)


def build_transformer(
    vocab: int,
    length: int,
    *,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    expansion: int = 4,
    tied: bool = False,
    use_bias: bool = False,
) -> Network:
    """A transformer as two pure functions: init(key) → params, apply(params, x int [n, T]) → logits [n, T, vocab].

    T is at most `length`. The categorical likelihood adds losses over positions, so a step size that suits a classifier
    is T times too large. An exact Fisher pulls back T · vocab cotangents for every example: for more than a few
    positions and tokens take `kind="monte_carlo"` or `kind="empirical"`.

    Args:
        vocab: number of different tokens.
        length: positions, at most.
        width: numbers per position in the stream.
        depth: blocks.
        heads: attention heads; they divide the width.
        expansion: hidden units of a block's perceptron, as a multiple of the width.
        tied: whether the head is the transposed embedding.
        use_bias: whether dense layers (but the head) and norms have biases.

    Raises:
        ValueError: a size below 1, or heads that do not divide the width; from `apply`, tokens of another type or
            shape.
    """
    sizes: dict[str, Any] = dict(vocab=vocab, length=length, width=width, depth=depth, heads=heads, expansion=expansion)
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: got {size}, expected at least 1")
    if width % heads:
        raise ValueError(f"heads: got {heads}, expected a divisor of the width, {width}")
    module = Transformer(**sizes, tied=tied, use_bias=use_bias)

    def init(key):
        return module.lazy_init(key, jax.ShapeDtypeStruct((1, length), jnp.int32))["params"]

    def apply(params, x):
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 2 or not 1 <= x.shape[1] <= length:
            raise ValueError(f"x: got {x.dtype} {x.shape}, expected integer tokens [n, T] with T at most {length}")
        return module.apply({"params": params}, x)

    return Network(init, apply, "transformer")

"""Multi-layer perceptron."""

import flax.linen as nn
from jaxtyping import Array, Float

from . import _layers as layers


class MLP(nn.Module):
    """Dense layers fc1, fc2, ... with ReLU between them.

    Attributes:
        num_classes: width of the output.
        hidden: widths of the hidden layers; () is a linear model.
        use_bias: whether every layer has a bias.
    """

    num_classes: int
    hidden: tuple[int, ...] = (64, 32)
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n *shape"]) -> Float[Array, "n classes"]:
        """Logits of each example."""
        x = layers.flatten(x)
        for i, width in enumerate(self.hidden, start=1):
            x = nn.relu(layers.dense(x, width, name=f"fc{i}", use_bias=self.use_bias))
        return layers.dense(x, self.num_classes, name=f"fc{len(self.hidden) + 1}", use_bias=self.use_bias)

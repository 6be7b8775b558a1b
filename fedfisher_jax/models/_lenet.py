"""LeNet as in arXiv 2403.12329: 44,190 parameters on 28x28x1 images with ten classes and without biases."""

import flax.linen as nn
from jaxtyping import Array, Float

from . import _layers as layers


class LeNet(nn.Module):
    """Two valid 5x5 convolutions (6, 16), each with a 2x2 max-pool, and dense layers 120-84-classes.

    Attributes:
        num_classes: width of the output.
        width: multiplies every hidden width.
        use_bias: whether every layer has a bias.
    """

    num_classes: int
    width: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of each image."""
        bias = self.use_bias
        x = nn.relu(layers.conv(x, 6 * self.width, 5, name="conv1", use_bias=bias))
        x = layers.max_pool2(x)
        x = nn.relu(layers.conv(x, 16 * self.width, 5, name="conv2", use_bias=bias))
        x = layers.flatten(layers.max_pool2(x))
        x = nn.relu(layers.dense(x, 120 * self.width, name="fc1", use_bias=bias))
        x = nn.relu(layers.dense(x, 84 * self.width, name="fc2", use_bias=bias))
        return layers.dense(x, self.num_classes, name="fc3", use_bias=bias)

"""The CNN of arXiv 2403.12329: 939,616 parameters on 32x32x3 images with ten classes and without biases."""

import flax.linen as nn
from jaxtyping import Array, Float

from . import _layers as layers


class CNN(nn.Module):
    """Two valid 5x5 convolutions (32, 64), each with a 2x2 max-pool, and dense layers 512-128-classes.

    Attributes:
        num_classes: width of the output.
        use_bias: whether every layer has a bias.
    """

    num_classes: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of each image."""
        bias = self.use_bias
        x = nn.relu(layers.conv(x, 32, 5, name="conv1", use_bias=bias))
        x = layers.max_pool2(x)
        x = nn.relu(layers.conv(x, 64, 5, name="conv2", use_bias=bias))
        x = layers.flatten(layers.max_pool2(x))
        x = nn.relu(layers.dense(x, 512, name="fc1", use_bias=bias))
        x = nn.relu(layers.dense(x, 128, name="fc2", use_bias=bias))
        return layers.dense(x, self.num_classes, name="fc3", use_bias=bias)

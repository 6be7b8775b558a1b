"""ResNet-18 without batch normalisation, and the shape of its variant pre-trained on Tiny-ImageNet.

Both as in the experiments of arXiv 2403.12329.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from . import _layers as layers


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution where the shape changes, else the identity."""

    features: int
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        """Feature maps of each image."""
        bias, stride = self.use_bias, self.stride
        y = nn.relu(layers.conv(x, self.features, 3, name="conv1", stride=stride, padding=1, use_bias=bias))
        y = layers.conv(y, self.features, 3, name="conv2", padding=1, use_bias=bias)
        if stride != 1 or x.shape[-1] != self.features:
            x = layers.conv(x, self.features, 1, name="shortcut", stride=stride, use_bias=bias)
        return nn.relu(x + y)


def _trunk(x: Float[Array, "n h w c"], use_bias: bool) -> Float[Array, "n d"]:
    """The four stages of two blocks each, the 4x4 mean pool and the flattening; 512 features for 32x32 images."""
    for stage, features in enumerate((64, 128, 256, 512), start=1):
        for i in range(2):
            stride = 2 if stage > 1 and i == 0 else 1
            x = Block(features, stride, use_bias, name=f"layer{stage}_{i}")(x)
    return layers.flatten(layers.mean_pool(x, 4))


class ResNet18(nn.Module):
    """3x3 stem, stages 64-128-256-512, one dense layer: 11,164,352 parameters on 32x32x3 images with ten classes.

    Attributes:
        num_classes: width of the output.
        use_bias: whether every layer has a bias.
    """

    num_classes: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of each image."""
        x = nn.relu(layers.conv(x, 64, 3, name="conv1", padding=1, use_bias=self.use_bias))
        return layers.dense(_trunk(x, self.use_bias), self.num_classes, name="linear", use_bias=self.use_bias)


class ResNet18Pretrained(nn.Module):
    """7x7 stem with padding 1 and dense layers 1000-200-classes without non-linearities between them.

    `linear` is the head over the 200 classes of Tiny-ImageNet, `final` the one that is new for the task.

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
        x = nn.relu(layers.conv(x, 64, 7, name="conv1", padding=1, use_bias=bias))
        x = layers.dense(_trunk(x, bias), 1000, name="fc", use_bias=bias)
        x = layers.dense(x, 200, name="linear", use_bias=bias)
        return layers.dense(x, self.num_classes, name="final", use_bias=bias)

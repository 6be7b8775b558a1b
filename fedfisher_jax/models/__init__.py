"""The networks of the experiments. Everything else takes any `apply(params, x)`; nothing depends on these."""

from . import torch_layout as torch_layout
from . import weights as weights
from ._build import NAMES as NAMES
from ._build import Network as Network
from ._build import build as build
from ._cnn import CNN as CNN
from ._lenet import LeNet as LeNet
from ._mlp import MLP as MLP
from ._resnet import ResNet18 as ResNet18
from ._resnet import ResNet18Pretrained as ResNet18Pretrained
from ._starts import STARTS as STARTS
from ._starts import designed as designed
from ._transformer import Transformer as Transformer
from ._transformer import build_transformer as build_transformer

__all__ = [
    "CNN",
    "LeNet",
    "MLP",
    "NAMES",
    "Network",
    "ResNet18",
    "ResNet18Pretrained",
    "STARTS",
    "Transformer",
    "build",
    "build_transformer",
    "designed",
    "torch_layout",
    "weights",
]

"""The networks of the experiments. Everything else takes any `apply(params, x)`; nothing depends on these."""

from fedfisher_jax.models import ngram as ngram
from fedfisher_jax.models import torch_layout as torch_layout
from fedfisher_jax.models import weights as weights
from fedfisher_jax.models.build import NAMES as NAMES
from fedfisher_jax.models.build import Network as Network
from fedfisher_jax.models.build import build as build
from fedfisher_jax.models.cnn import CNN as CNN
from fedfisher_jax.models.lenet import LeNet as LeNet
from fedfisher_jax.models.mlp import MLP as MLP
from fedfisher_jax.models.resnet import ResNet18 as ResNet18
from fedfisher_jax.models.resnet import ResNet18Pretrained as ResNet18Pretrained
from fedfisher_jax.models.transformer import Transformer as Transformer
from fedfisher_jax.models.transformer import build_transformer as build_transformer

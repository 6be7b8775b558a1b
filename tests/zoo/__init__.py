"""Models of every kind that a user may bring, and what the capture of layers must make of each: `CASES[name]()`."""

from zoo import layers, reuse, tables  # each adds its models to CASES
from zoo.case import CASES, Case, linen, normal
from zoo.convolutions import CONVOLUTIONS, convolution
from zoo.traps import straight_through

__all__ = [
    "CASES",
    "CONVOLUTIONS",
    "Case",
    "convolution",
    "layers",
    "linen",
    "normal",
    "reuse",
    "straight_through",
    "tables",
]

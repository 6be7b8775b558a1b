"""Fisher information: the capture of a model's layers, structures and their algebra, and estimates from data."""

from ._capture import capture as capture
from ._eigenpairs import Eigenpairs as Eigenpairs
from ._eigenpairs import Subspace as Subspace
from ._eigenpairs import top_eigenpairs as top_eigenpairs
from ._estimate import Estimate as Estimate
from ._estimate import fisher as fisher
from ._estimate import fishers as fishers
from ._layers import Layer as Layer
from ._pull_back import Capture as Capture
from ._pull_back import activations as activations
from .structures import STRUCTURES as STRUCTURES
from .structures import Diagonal as Diagonal
from .structures import Fisher as Fisher
from .structures import Full as Full
from .structures import Gram as Gram
from .structures import Kronecker as Kronecker
from .structures import LowRank as LowRank
from .structures import Mixture as Mixture
from .structures import Moments as Moments
from .structures import Structure as Structure
from .structures import damped_inverse as damped_inverse
from .structures import num_bytes as num_bytes
from .structures import quadratic as quadratic
from .structures import recompress as recompress
from .structures import register as register
from .structures import shaped as shaped
from .structures import trace as trace

__all__ = [
    "Capture",
    "Diagonal",
    "Eigenpairs",
    "Estimate",
    "Fisher",
    "Full",
    "Gram",
    "Kronecker",
    "Layer",
    "LowRank",
    "Mixture",
    "Moments",
    "STRUCTURES",
    "Structure",
    "Subspace",
    "activations",
    "capture",
    "damped_inverse",
    "fisher",
    "fishers",
    "num_bytes",
    "quadratic",
    "recompress",
    "register",
    "shaped",
    "top_eigenpairs",
    "trace",
]

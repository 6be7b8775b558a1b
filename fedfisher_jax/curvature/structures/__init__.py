"""Fisher information matrices as positive semi-definite operators on parameter trees.

All structures have one small algebra: `matvec`, `quadratic`, `diagonal`, `trace`, `scale`, `to_dense`, `num_bytes`,
`blocks` (the leaves that F couples) and `spectral` (any function of F). They are frozen pytrees: a leading client axis
is `vmap`. None is normalised beyond "mean over examples"; the number of examples is the client's weight, kept beside
them. Files, noise and attacks take a structure by its named arrays; `register` makes one of your own known to all.
"""

from ._diagonal import Diagonal as Diagonal
from ._full import Full as Full
from ._gram import Gram as Gram
from ._kronecker import Kronecker as Kronecker
from ._low_rank import LowRank as LowRank
from ._low_rank import Recompressed as Recompressed
from ._low_rank import recompress as recompress
from ._mixture import Mixture as Mixture
from ._moments import Moments as Moments
from ._protocol import Blocks as Blocks
from ._protocol import Fisher as Fisher
from ._protocol import Statistic as Statistic
from ._protocol import Structure as Structure
from ._protocol import damped_inverse as damped_inverse
from ._protocol import num_bytes as num_bytes
from ._protocol import quadratic as quadratic
from ._protocol import shaped as shaped
from ._protocol import trace as trace
from ._registry import STRUCTURES as STRUCTURES
from ._registry import register as register

__all__ = [
    "Blocks",
    "Diagonal",
    "Fisher",
    "Full",
    "Gram",
    "Kronecker",
    "LowRank",
    "Mixture",
    "Moments",
    "Recompressed",
    "STRUCTURES",
    "Statistic",
    "Structure",
    "damped_inverse",
    "num_bytes",
    "quadratic",
    "recompress",
    "register",
    "shaped",
    "trace",
]

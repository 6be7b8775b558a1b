"""Fisher information: capture of layers, structures and their algebra, estimation."""

from .capture import capture as capture
from .eigenpairs import Eigenpairs as Eigenpairs
from .eigenpairs import Subspace as Subspace
from .eigenpairs import top_eigenpairs as top_eigenpairs
from .estimate import fisher as fisher
from .estimate import fishers as fishers
from .layers import Layer as Layer
from .low_rank import LowRank as LowRank
from .low_rank import recompress as recompress
from .pull_back import Capture as Capture
from .pull_back import activations as activations
from .structures import Diagonal as Diagonal
from .structures import Fisher as Fisher
from .structures import Full as Full
from .structures import Kronecker as Kronecker
from .structures import Mixture as Mixture
from .structures import num_bytes as num_bytes
from .structures import quadratic as quadratic
from .structures import trace as trace

"""Fisher information: capture of layers, structures and their algebra, estimation."""

from .capture import Capture as Capture
from .capture import activations as activations
from .capture import capture as capture
from .estimate import fisher as fisher
from .estimate import fishers as fishers
from .layers import Layer as Layer
from .structures import Diagonal as Diagonal
from .structures import Fisher as Fisher
from .structures import Full as Full
from .structures import Kronecker as Kronecker
from .structures import Mixture as Mixture
from .structures import num_bytes as num_bytes
from .structures import quadratic as quadratic
from .structures import trace as trace

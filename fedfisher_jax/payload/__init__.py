"""What crosses the network: payload files, their compression and their bits."""

from . import plan as plan
from ._codecs import Cholesky as Cholesky
from ._codecs import Codec as Codec
from ._codecs import Eigen as Eigen
from ._codecs import Raw as Raw
from ._codecs import Root as Root
from ._codecs import Singular as Singular
from ._codecs import Uniform as Uniform
from ._container import Limits as Limits
from ._container import PayloadError as PayloadError
from ._file import dumps as dumps
from ._file import header_of as header_of
from ._file import loads as loads
from ._file import read as read
from ._file import write as write
from ._files_of_a_merge import read_all as read_all
from ._files_of_a_merge import read_each as read_each
from ._header import About as About
from ._header import Header as Header
from ._header import Plan as Plan
from ._tree import fingerprint as fingerprint
from ._tree import leaves as leaves

__all__ = [
    "About",
    "Cholesky",
    "Codec",
    "Eigen",
    "Header",
    "Limits",
    "PayloadError",
    "Plan",
    "Raw",
    "Root",
    "Singular",
    "Uniform",
    "dumps",
    "fingerprint",
    "header_of",
    "leaves",
    "loads",
    "plan",
    "read",
    "read_all",
    "read_each",
    "write",
]

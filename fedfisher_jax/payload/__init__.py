"""What crosses the network: payload files, their compression and their bits."""

from .codecs import Cholesky as Cholesky
from .codecs import Codec as Codec
from .codecs import Eigen as Eigen
from .codecs import Raw as Raw
from .codecs import Root as Root
from .codecs import Singular as Singular
from .codecs import Uniform as Uniform
from .container import Limits as Limits
from .container import PayloadError as PayloadError
from .file import dumps as dumps
from .file import header_of as header_of
from .file import loads as loads
from .file import read as read
from .file import read_all as read_all
from .file import write as write
from .header import About as About
from .header import Header as Header
from .header import Plan as Plan
from .tree import fingerprint as fingerprint
from .tree import leaves as leaves

"""Models of PyTorch and Hugging Face (`pip install 'fedfisher-jax[torch]'`), run and merged as functions of JAX.

`from_module` sees a module as (apply, params, buffers); `merge` merges payloads of fine-tuned checkpoints, and `write`
makes a folder that `from_pretrained` loads.
"""

from ._bridge import Bridged as Bridged
from ._bridge import from_module as from_module
from ._bridge import state_dict as state_dict
from ._bridge import to_jax as to_jax
from ._bridge import to_torch as to_torch
from ._folders import read as read
from ._folders import write as write
from ._merge import merge as merge

__all__ = [
    "Bridged",
    "from_module",
    "merge",
    "read",
    "state_dict",
    "to_jax",
    "to_torch",
    "write",
]

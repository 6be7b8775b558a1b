"""Models of PyTorch and Hugging Face (`pip install 'fedfisher-jax[torch]'`), run and merged as functions of JAX.

`from_module` sees a module as (apply, params, buffers); `merge` merges payloads of fine-tuned checkpoints, and `write`
makes a folder that `from_pretrained` loads.
"""

from ._adapters import adapter_names as adapter_names
from ._adapters import is_adapter as is_adapter
from ._bridge import Bridged as Bridged
from ._bridge import from_module as from_module
from ._bridge import state_dict as state_dict
from ._bridge import to_jax as to_jax
from ._bridge import to_torch as to_torch
from ._card import card as card
from ._folders import read as read
from ._folders import write as write
from ._merge import RULES as RULES
from ._merge import merge as merge
from ._modules import load as load
from ._modules import make as make
from ._modules import write_state as write_state
from ._rows import IGNORED as IGNORED
from ._rows import next_tokens as next_tokens
from ._rows import read_rows as read_rows

__all__ = [
    "Bridged",
    "IGNORED",
    "RULES",
    "adapter_names",
    "card",
    "from_module",
    "is_adapter",
    "load",
    "make",
    "merge",
    "next_tokens",
    "read",
    "read_rows",
    "state_dict",
    "to_jax",
    "to_torch",
    "write",
    "write_state",
]

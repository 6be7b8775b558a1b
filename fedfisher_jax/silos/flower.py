"""A live federation with Flower (`pip install 'fedfisher-jax[flower]'`): payload files as messages, any rule's merge.

`client_app` makes a silo's ClientApp, `FedFisher` is the server's strategy, for one round or several. What nodes send
is checked like a payload file; a node whose payload is refused, that fails or does not answer in time is left out, and
named. No node can stop a round, nor make the server wait beyond `wait` and `timeout`.
"""

from ._flower_node import STYPE as STYPE
from ._flower_node import Region as Region
from ._flower_node import Silo as Silo
from ._flower_node import client_app as client_app
from ._flower_node import exchange_of as exchange_of
from ._flower_node import from_record as from_record
from ._flower_node import round_keys as round_keys
from ._flower_node import to_record as to_record
from ._flower_server import FedFisher as FedFisher

"""Secure sums in a live federation with Flower (`pip install 'fedfisher-jax[flower,privacy]'`).

A round of Flower's is one secure sum: nodes train, measure and join it; then the strategy carries the letters of
`fedfisher secure` as messages, which nobody has to mail. Keys are signed by identities that nodes know beforehand,
in the place of a fingerprint that people compare. Flower's own SecAgg+ does not carry these payloads (docs/silos.md).
"""

from ._flower_node import SecureSilo as SecureSilo
from ._flower_node import client_app as client_app
from ._flower_server import SecureFedFisher as SecureFedFisher

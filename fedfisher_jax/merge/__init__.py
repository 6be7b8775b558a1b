"""Merge rules: one file each, all of them a `Rule`."""

from .distil import RELEASED_DENSE as RELEASED_DENSE
from .distil import DenseSettings as DenseSettings
from .distil import dense as dense
from .fedavg import fedavg as fedavg
from .fedbens import FreshModes as FreshModes
from .fedbens import fedbens as fedbens
from .fedbens import from_starts as from_starts
from .fedfisher import fedfisher as fedfisher
from .fedfisher import fisher_merge as fisher_merge
from .fedlpa import fedlpa as fedlpa
from .ot_fusion import ot_fusion as ot_fusion
from .ot_fusion import released_ot_fusion as released_ot_fusion
from .pfnm import pfnm as pfnm
from .pfnm import released_pfnm as released_pfnm
from .regmean import regmean as regmean
from .regmean import regmean_kron as regmean_kron
from .regmean import released_regmean as released_regmean
from .rule import Measure as Measure
from .rule import Merged as Merged
from .rule import Payload as Payload
from .rule import Rule as Rule
from .rule import check_payload as check_payload
from .rule import combine as combine
from .rule import fold as fold
from .rule import merge_payloads as merge_payloads

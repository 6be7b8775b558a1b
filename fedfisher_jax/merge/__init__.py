"""Merge rules: one file each, all of them a `Rule`."""

from ._centres import coordinate_median as coordinate_median
from ._centres import geometric_median as geometric_median
from ._centres import trimmed_mean as trimmed_mean
from ._distil import RELEASED_DENSE as RELEASED_DENSE
from ._distil import DenseSettings as DenseSettings
from ._distil import dense as dense
from ._fedavg import fedavg as fedavg
from ._fedbens import FreshModes as FreshModes
from ._fedbens import fedbens as fedbens
from ._fedbens import from_starts as from_starts
from ._fedfish import fedfish as fedfish
from ._fedfisher import fedfisher as fedfisher
from ._fedfisher import fisher_merge as fisher_merge
from ._fedlpa import fedlpa as fedlpa
from ._fipa import fipa as fipa
from ._fipa import public_fipa_step as public_fipa_step
from ._fold import check_payload as check_payload
from ._fold import combine as combine
from ._fold import fold as fold
from ._fold import lift as lift
from ._fold import merge_payloads as merge_payloads
from ._heads import analytic as analytic
from ._heads import recalibrate as recalibrate
from ._joint_step import PAPER_FIPA as PAPER_FIPA
from ._joint_step import FipaStep as FipaStep
from ._measure import MeasureFisher as MeasureFisher
from ._natural_gradient import natural_gradient as natural_gradient
from ._one_by_one import merge_one_by_one as merge_one_by_one
from ._ot_fusion import ot_fusion as ot_fusion
from ._ot_fusion import released_ot_fusion as released_ot_fusion
from ._past_client import with_past as with_past
from ._past_fishers import PastFishers as PastFishers
from ._pfnm import pfnm as pfnm
from ._pfnm import released_pfnm as released_pfnm
from ._pseudo_data import Draws as Draws
from ._pseudo_data import pseudo_data as pseudo_data
from ._regmean import regmean as regmean
from ._regmean import regmean_kron as regmean_kron
from ._regmean import released_regmean as released_regmean
from ._robust import robust as robust
from ._rule import Carry as Carry
from ._rule import Kind as Kind
from ._rule import Merged as Merged
from ._rule import Payload as Payload
from ._rule import Rule as Rule
from ._rule import Takes as Takes
from ._rule import Update as Update
from ._rule import exchanges as exchanges
from ._rule import then as then

__all__ = [
    "Carry",
    "DenseSettings",
    "Draws",
    "FipaStep",
    "FreshModes",
    "Kind",
    "MeasureFisher",
    "Merged",
    "PAPER_FIPA",
    "PastFishers",
    "Payload",
    "RELEASED_DENSE",
    "Rule",
    "Takes",
    "Update",
    "analytic",
    "check_payload",
    "combine",
    "coordinate_median",
    "dense",
    "exchanges",
    "fedavg",
    "fedbens",
    "fedfish",
    "fedfisher",
    "fedlpa",
    "fipa",
    "fisher_merge",
    "fold",
    "from_starts",
    "geometric_median",
    "lift",
    "merge_one_by_one",
    "merge_payloads",
    "natural_gradient",
    "ot_fusion",
    "pfnm",
    "pseudo_data",
    "public_fipa_step",
    "recalibrate",
    "regmean",
    "regmean_kron",
    "released_ot_fusion",
    "released_pfnm",
    "released_regmean",
    "robust",
    "then",
    "trimmed_mean",
    "with_past",
]

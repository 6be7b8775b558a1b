"""Where examples come from, and how they are split over clients."""

from ._dataset import Dataset as Dataset
from ._flower import by_partitioner as by_partitioner
from ._load import DATASETS as DATASETS
from ._load import is_own as is_own
from ._load import load as load
from ._npz import read_npz as read_npz
from ._partition import dirichlet_class as dirichlet_class
from ._partition import dirichlet_client as dirichlet_client
from ._partition import iid as iid
from ._partition import natural as natural
from ._partition import quantity as quantity
from ._partition import shards as shards
from ._plot import plot_label_counts as plot_label_counts
from ._scaling import Scaling as Scaling
from ._scaling import Sums as Sums
from ._scaling import describe as describe
from ._scaling import scaling_of as scaling_of
from ._split import PARTITIONS as PARTITIONS
from ._split import label_counts as label_counts
from ._split import split as split
from ._tables import Columns as Columns
from ._tables import read_table as read_table
from ._targets import TARGETS as TARGETS
from ._targets import Strata as Strata
from ._targets import strata as strata
from ._text import TextData as TextData
from ._text import standard_library as standard_library
from ._text import text_clients as text_clients
from ._text import text_folder as text_folder
from ._where import DataNotFoundError as DataNotFoundError

__all__ = [
    "Columns",
    "DATASETS",
    "DataNotFoundError",
    "Dataset",
    "PARTITIONS",
    "Scaling",
    "Strata",
    "Sums",
    "TARGETS",
    "TextData",
    "by_partitioner",
    "describe",
    "dirichlet_class",
    "dirichlet_client",
    "iid",
    "is_own",
    "label_counts",
    "load",
    "natural",
    "plot_label_counts",
    "quantity",
    "read_npz",
    "read_table",
    "scaling_of",
    "shards",
    "split",
    "standard_library",
    "strata",
    "text_clients",
    "text_folder",
]

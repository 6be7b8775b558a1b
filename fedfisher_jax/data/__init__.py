"""Where examples come from, and how they are split over clients."""

from .dataset import Dataset as Dataset
from .load import DATASETS as DATASETS
from .load import load as load
from .npz import read_npz as read_npz
from .partition import dirichlet_class as dirichlet_class
from .partition import dirichlet_client as dirichlet_client
from .partition import iid as iid
from .partition import natural as natural
from .partition import quantity as quantity
from .partition import shards as shards
from .plot import plot_label_counts as plot_label_counts
from .split import PARTITIONS as PARTITIONS
from .split import label_counts as label_counts
from .split import split as split
from .text import TextData as TextData
from .text import standard_library as standard_library
from .text import text_clients as text_clients
from .text import text_folder as text_folder
from .where import DataNotFoundError as DataNotFoundError

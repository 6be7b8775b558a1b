"""What a run leaves behind for people: tables, figures, and what made them."""

from ._figures import plot_accuracy as plot_accuracy
from ._table import result_table as result_table
from ._versions import versions as versions
from ._words import words_on_rule as words_on_rule
from ._words import words_on_training as words_on_training

__all__ = [
    "plot_accuracy",
    "result_table",
    "versions",
    "words_on_rule",
    "words_on_training",
]

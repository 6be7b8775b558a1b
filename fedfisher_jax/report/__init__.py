"""What a run leaves behind for people: tables, figures, and what made them."""

from ._colours import colours_of as colours_of
from ._figures import plot_accuracy as plot_accuracy
from ._figures import plot_summary as plot_summary
from ._further_scores import further as further
from ._further_scores import mean_of_last as mean_of_last
from ._page import page as page
from ._summary import Spread as Spread
from ._summary import Summary as Summary
from ._summary import by_round as by_round
from ._summary import comma_separated as comma_separated
from ._summary import latex as latex
from ._summary import markdown as markdown
from ._summary import summarise as summarise
from ._table import result_table as result_table
from ._table import summary_table as summary_table
from ._versions import versions as versions
from ._words import words_on_rule as words_on_rule
from ._words import words_on_training as words_on_training

__all__ = [
    "Spread",
    "Summary",
    "by_round",
    "colours_of",
    "comma_separated",
    "further",
    "latex",
    "markdown",
    "mean_of_last",
    "page",
    "plot_accuracy",
    "plot_summary",
    "result_table",
    "summarise",
    "summary_table",
    "versions",
    "words_on_rule",
    "words_on_training",
]

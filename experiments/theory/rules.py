"""What the scripts of this folder call rules, for people, and their colours."""

from experiments.lib import common

LABELS = {
    "full": "FedFisher, full",
    "kfac": "FedFisher, K-FAC",
    "diagonal": "FedFisher, diagonal",
    "average": "average",
}
COLOURS = common.rule_colours(
    LABELS,
    {"full": "fedfisher-full", "kfac": "fedfisher-kfac", "diagonal": "fedfisher-diag", "average": "fedavg"},
)

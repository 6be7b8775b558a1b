"""Reading a user's function as a program, and rewriting it: jaxprs, and convolutions as matrix products."""

from ._apart import require_apart as require_apart
from ._convolution import as_matrix_products as as_matrix_products
from ._convolution import for_loops as for_loops
from ._jaxpr import evaluate as evaluate
from ._training_form import for_training as for_training

__all__ = [
    "as_matrix_products",
    "evaluate",
    "for_loops",
    "for_training",
    "require_apart",
]

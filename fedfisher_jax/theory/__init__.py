"""Two-layer ReLU networks as the width grows, with the exact full Fisher in sample space.

    from fedfisher_jax.theory import decomposition, inputs, two_layer

    data = inputs.gaussian(key, num_clients=2, examples=10, inputs=5)
    run = decomposition.diagnose(two_layer.init(key, 5, width), data, steps=3000, step_size=0.5)
    run.errors["full"].laplace

docs/theory.md derives what the modules compute; `matrix_free` is the same for any network, `widths` at many widths.
"""

from . import decomposition as decomposition
from . import inputs as inputs
from . import matrix_free as matrix_free
from . import merges as merges
from . import rows as rows
from . import sample_space as sample_space
from . import scaling as scaling
from . import two_layer as two_layer
from . import widths as widths

__all__ = [
    "decomposition",
    "inputs",
    "matrix_free",
    "merges",
    "rows",
    "sample_space",
    "scaling",
    "two_layer",
    "widths",
]

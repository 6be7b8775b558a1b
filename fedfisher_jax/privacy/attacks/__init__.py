"""Attacks on what the server sees of a client, and measures of what they find out (docs/privacy.md).

`views` needs `cryptography` for secure sums, so it is imported by its own name.
"""

from . import labels as labels
from . import measures as measures
from .descent import Bounds as Bounds
from .descent import State as State
from .descent import Weights as Weights
from .descent import begin as begin
from .descent import descend as descend
from .fisher_inversion import FisherInversion as FisherInversion
from .fisher_inversion import Given as Given
from .fisher_inversion import Inputs as Inputs
from .fisher_inversion import Principal as Principal
from .fisher_inversion import images_of as images_of
from .fisher_inversion import input_moment as input_moment
from .fisher_inversion import inputs_of as inputs_of
from .fisher_inversion import output_moment as output_moment
from .fisher_inversion import principal as principal
from .fisher_inversion import whitener as whitener
from .gradient_inversion import GradientInversion as GradientInversion
from .gradient_inversion import Span as Span
from .gradient_inversion import gradient_of_step as gradient_of_step
from .gradient_inversion import mixtures as mixtures
from .gradient_inversion import span as span
from .gradient_inversion import unmixed as unmixed
from .measures import auc as auc
from .measures import likeness as likeness
from .measures import nearest as nearest
from .measures import psnr as psnr
from .measures import ssim as ssim
from .measures import total_variation_distance as total_variation_distance
from .membership import fisher_scores as fisher_scores
from .membership import leverage_scores as leverage_scores
from .membership import loss_scores as loss_scores
from .model_inversion import ModelInversion as ModelInversion
from .model_inversion import grey as grey
from .priors import mean_square as mean_square
from .priors import total_variation as total_variation

__all__ = [
    "Bounds",
    "FisherInversion",
    "Given",
    "GradientInversion",
    "Inputs",
    "ModelInversion",
    "Principal",
    "Span",
    "State",
    "Weights",
    "auc",
    "begin",
    "descend",
    "fisher_scores",
    "gradient_of_step",
    "grey",
    "images_of",
    "input_moment",
    "inputs_of",
    "labels",
    "leverage_scores",
    "likeness",
    "loss_scores",
    "mean_square",
    "measures",
    "mixtures",
    "nearest",
    "output_moment",
    "principal",
    "psnr",
    "span",
    "ssim",
    "total_variation",
    "total_variation_distance",
    "unmixed",
    "whitener",
]

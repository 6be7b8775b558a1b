"""scikit-learn's handwritten digits (UCI, 1797 images of 8×8): the set that needs no files and no network.

The split is fixed and needs no random numbers: of each class, in file order, examples 4, 9, 14, … (from 0) are for
testing. That is a stratified 80 / 20 split of 1442 training and 355 test images.
"""

import numpy as np

from ._dataset import Dataset
from ._scaling import Scaling

# Mean and standard deviation of the 1442 training images' pixels, divided by 16, over all pixels.
MEAN, STD = 0.305136, 0.376158


def read_digits() -> Dataset:
    """The digits as float32 [N, 8, 8, 1], (pixel / 16 − MEAN) / STD, with 10 classes."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::5]] = True
    x = ((pixels / 16 - MEAN) / STD).astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels.astype(np.int32)
    scaling = Scaling(np.array([16 * MEAN]), np.array([16 * STD]))
    return Dataset("digits", x[~is_test], y[~is_test], x[is_test], y[is_test], num_classes=10, scaling=scaling)

"""What else is said of predictions: what is confused with what, how well examples are ranked, errors in units."""

from typing import Any

import numpy as np
import scipy  # its parts load where they are used

from ._likelihood import Likelihood

MOST_CLASSES = 100  # of a table of what is confused with what


def further_scores(likelihood: Likelihood, outputs: Any, y: Any) -> dict[str, Any]:
    """Score a model's outputs beyond loss and accuracy.

    Args:
        likelihood: what the outputs mean.
        outputs: [n, C]; of sequences nothing is said.
        y: targets.

    Returns:
        For classes "auc", "accuracy_by_class" [C] (None of a class without examples) and, up to 100 classes, the counts
        "confusion" [C, C], a row for each class that is true; for several labels "auc", their mean; for numbers "rmse".
        An "auc" is the probability that an example of a class is ranked above one of another; it is left out where
        there are no two kinds of examples.

    Example:
        >>> import numpy as np, fedfisher_jax as ff
        >>> from fedfisher_jax._further import further_scores
        >>> print(f"{further_scores(ff.gaussian(), np.zeros((2, 1)), np.array([3.0, 4.0]))['rmse']:.4f}")  # √12.5
        3.5355
    """
    outputs, y = np.asarray(outputs, float), np.asarray(y)
    if outputs.ndim != 2:
        return {}
    if likelihood.name == "gaussian":
        return {"rmse": float(np.sqrt(np.square(outputs - y.reshape(outputs.shape)).mean()))}
    if likelihood.name == "bernoulli":
        return _auc(y.reshape(outputs.shape) == 1, outputs)
    if likelihood.name != "categorical":
        return {}
    classes = outputs.shape[1]
    places = classes * y.astype(np.int64) + outputs.argmax(1)  # of a narrow type they would wrap
    table = np.bincount(places, minlength=classes**2).reshape(classes, classes)
    counts = table.sum(1)
    shares = [float(table[c, c] / counts[c]) if counts[c] else None for c in range(classes)]
    found = _auc(y[:, None] == np.arange(classes), scipy.special.log_softmax(outputs, axis=1)) | {
        "accuracy_by_class": shares
    }
    return found | ({"confusion": table.tolist()} if classes <= MOST_CLASSES else {})


def rmse_of(loss: float, outputs: int) -> float:
    """Root mean square error of each of an example's outputs, from a loss of `gaussian()`, of variance 1."""
    return float(np.sqrt(2 * loss / outputs))


def _auc(true: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Mean area under the curve of the columns [n, C] that have both kinds of examples."""
    from sklearn.metrics import roc_auc_score

    both = [c for c in range(true.shape[1]) if 0 < true[:, c].sum() < len(true)]
    if not both or not np.isfinite(scores).all():
        return {}
    return {"auc": float(np.mean([roc_auc_score(true[:, c], scores[:, c]) for c in both]))}

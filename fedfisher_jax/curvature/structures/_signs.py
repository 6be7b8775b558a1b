"""What the entries of a structure's arrays may be, checked and mended, in numpy: for files, and after noise."""

import contextlib
import functools
from typing import Literal

import numpy as np
from threadpoolctl import ThreadpoolController

Sign = Literal["semidefinite", "nonnegative", "any"]
SMALL = 1024  # sides of matrices for which threads of BLAS cost more than they give, beside other programs tenfold
PSD_TOLERANCE = 1e-5  # of the largest diagonal entry: rounding of float32 sums (measured: 1e-6 on 10 x 10 factors)


def require_sign(sign: Sign, array: np.ndarray) -> None:
    """Refuse an array that is not what a Fisher has there, to `PSD_TOLERANCE`.

    Args:
        sign: "semidefinite" for matrices [..., n, n], "nonnegative" for diagonals and eigenvalues, or "any".
        array: its numbers, finite.

    Raises:
        ValueError: a negative entry of a diagonal, an asymmetric matrix or a negative eigenvalue.
    """
    if sign == "nonnegative" and array.size and array.min() < 0:
        raise ValueError(f"expected no negative entry, got {array.min():g}")
    if sign != "semidefinite" or not array.size:
        return
    wide = array.astype(np.float64)  # few copies: files' matrices are large, and readers' memory has a cap
    gap, largest = (wide - np.swapaxes(wide, -1, -2)).max(), max(wide.max(), -wide.min())
    if gap > PSD_TOLERANCE * largest:
        raise ValueError(f"expected a symmetric matrix, got differences up to {gap:g} of {largest:g}")
    shift = PSD_TOLERANCE * np.abs(np.diagonal(wide, axis1=-2, axis2=-1)).max(-1)  # at most that times the largest
    wide = wide + np.swapaxes(wide, -1, -2)
    wide /= 2
    axis = np.arange(wide.shape[-1])
    wide[..., axis, axis] += np.where(shift > 0, shift, np.finfo(np.float64).tiny)[..., None]
    try:  # succeeds where no eigenvalue is below -shift, much faster than finding them
        with _few_threads(wide.shape[-1]):
            np.linalg.cholesky(wide)
    except np.linalg.LinAlgError:
        raise ValueError("expected a positive semi-definite matrix, got one with a negative eigenvalue") from None


def _few_threads(side: int) -> contextlib.AbstractContextManager:
    """One thread of BLAS for small matrices."""
    return _blas().limit(limits=1, user_api="blas") if side <= SMALL else contextlib.nullcontext()


@functools.cache
def _blas() -> ThreadpoolController:
    """The libraries that are loaded, looked for once: that takes longer than a factorisation."""
    return ThreadpoolController()


def nearest_semidefinite(array: np.ndarray) -> np.ndarray:
    """The symmetric part of matrices [..., n, n] without its negative eigenvalues."""
    symmetric = array.astype(np.float64) + np.swapaxes(array, -1, -2)
    symmetric /= 2
    values, vectors = np.linalg.eigh(symmetric)
    del symmetric
    kept = (vectors * np.maximum(values, 0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return ((kept + np.swapaxes(kept, -1, -2)) / 2).astype(array.dtype)

"""Rows of examples in one length for several clients, as `vmap` over clients takes them."""

import numpy as np


def pad_rows(parts):
    """(rows [M, longest], sizes [M]) of index lists; padding repeats a row's first index."""
    longest = max(map(len, parts))
    rows = [np.concatenate([part, np.full(longest - len(part), part[0])]) for part in parts]
    return np.stack(rows).astype(np.int32), np.array([len(part) for part in parts], np.int32)

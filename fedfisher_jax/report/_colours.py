"""One colour for each rule, in every figure."""

import zlib

_PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A5C2E",
    "#6A3D9A",
    "#1B6B5A",
    "#A6303F",
)
_FIRST = (
    *("fedavg", "fedfisher-kfac", "fedfisher-diag", "fisher-merge", "fedfish", "fipa", "regmean", "otfusion"),
    *("pfnm", "fedlpa"),
)
LOCAL, REFERENCE = "#9A9A9A", "#5F5F5F"


def colour_of(rule: str) -> str:
    """A rule's colour: well-known rules have one each, others one by their name."""
    number = _FIRST.index(rule) if rule in _FIRST else zlib.crc32(rule.encode())
    return _PALETTE[number % len(_PALETTE)]

"""One colour for each rule, in every figure."""

import zlib
from collections.abc import Iterable

_PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7B52AB", "#1F8A8A", "#B5384B"),
    *("#6B8E23", "#C06C2B", "#4F6DB8", "#A05195", "#D9B300", "#5E8C61"),
)
_KNOWN = (
    *("fedavg", "fedfisher-kfac", "fedfisher-diag", "fisher-merge", "fedfish", "fipa", "regmean", "otfusion"),
    *("pfnm", "fedlpa"),
)
LOCAL, REFERENCE = "#9A9A9A", "#5F5F5F"


def colours_of(rules: Iterable[str]) -> dict[str, str]:
    """Colours of the rules of a figure: well-known ones have their own, others the free one that their name leads to.

    A rule with options has the colour of the rule, where that is free. They differ up to 16 rules; the last six, which
    are nearer to the first ten, come when those are taken.
    """
    rules = list(dict.fromkeys(rules))
    found = {name: _PALETTE[_KNOWN.index(name)] for name in rules if name in _KNOWN}
    for name in sorted(set(rules) - set(found)):
        plain, taken = name.partition(",")[0].partition("@")[0], set(found.values())
        first = (_KNOWN.index(plain) if plain in _KNOWN else zlib.crc32(name.encode())) % len(_KNOWN)
        clear, near = _PALETTE[: len(_KNOWN)], _PALETTE[len(_KNOWN) :]
        turned = (*clear[first:], *clear[:first], *near)
        found[name] = next((colour for colour in turned if colour not in taken), turned[0])
    return {name: found[name] for name in rules}

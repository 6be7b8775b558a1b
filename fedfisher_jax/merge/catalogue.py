"""The rules by name, and a user's own rule named as `module:function`.

Some rules take more than the model and its likelihood: its captured layers, say, or a way to train further local
models. A run offers what it has, by name, and a rule gets those offers that it takes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial, reduce, wraps
from typing import Any

from .._likelihood import Likelihood
from ..curvature import Capture, Subspace
from ..solve._paper_loop import paper_loop, released_adam
from ._distil import RELEASED_DENSE, dense
from ._entry import Entry as Entry
from ._entry import known_options, options_after_at, users_entry
from ._fedavg import fedavg
from ._fedbens import fedbens
from ._fedfish import fedfish
from ._fedfisher import DAMPING, fedfisher, fisher_merge
from ._fedlpa import fedlpa
from ._fipa import fipa, public_fipa_step
from ._heads import analytic, recalibrate
from ._joint_step import PAPER_FIPA
from ._natural_gradient import natural_gradient
from ._options import arguments_of, named, records
from ._ot_fusion import ot_fusion, released_ot_fusion
from ._past_fishers import PastFishers
from ._pfnm import pfnm, released_pfnm
from ._pseudo_data import pseudo_data
from ._regmean import regmean, regmean_kron, released_regmean
from ._rule import Rule, then

SOLVED = {
    "fedfisher-diag": "diagonal",
    "fedfisher-kfac": "kronecker",
    "fedfisher-full": "full",
    "fedfisher-lowrank": "low_rank",
}
"""The rules that take a `solver`, and their structures."""

_FISHER = ("kind", "samples", "captured")

_SAYS = {
    "fedfisher-diag": "minimises the clients' quadratic losses with diagonal Fishers",
    "fedfisher-kfac": "the same with Kronecker-factored Fishers, a pair of matrices a layer",
    "fedfisher-full": "the same with whole Fishers, for small models",
    "fedfisher-lowrank": "the same with the Fishers' leading eigenvectors",
}


@wraps(fipa)  # whose options are its
def _fipa(
    apply: Callable, likelihood: Likelihood, *, captured: Capture | None = None, last: bool = False, **options: Any
) -> Rule:
    if not last:
        return fipa(apply, likelihood, **options)
    if captured is None or not captured.layers:
        raise ValueError("rules: got fipa@last, expected a model with a layer that was captured")
    effort = dataclasses.replace(options.pop("subspace", Subspace()), where=captured.layers[-1].leaves)
    return fipa(apply, likelihood, subspace=effort, **options)


@wraps(fedfish)
def _fedfish(apply: Callable, likelihood: Likelihood, *, captured: Capture | None = None, **options: Any) -> Rule:
    layers = {} if captured is None or options.get("estimator") == "squares" else {"captured": captured}
    return fedfish(apply, likelihood, **layers, **options)


RULES: dict[str, Entry] = {
    "fedavg": Entry(fedavg, (), "averages parameters, weighted by numbers of examples"),
    "fisher-merge": Entry(fisher_merge, _FISHER, "averages each parameter, weighted by its diagonal Fisher"),
    **{
        name: Entry(partial(fedfisher, structure=structure), _FISHER, _SAYS[name], damping=DAMPING[structure])
        for name, structure in SOLVED.items()
    },
    "fedlpa": Entry(
        fedlpa,
        ("captured",),
        "layer-wise Laplace posteriors with empirical Kronecker factors",
        damping=DAMPING["kronecker"],
    ),
    "regmean": Entry(regmean, ("captured",), "dense layers by least squares on the clients' inputs, others averaged"),
    "regmean-kron": Entry(regmean_kron, ("captured",), "our variant of it, for all captured layers", damping=0.3),
    "otfusion": Entry(ot_fusion, ("captured",), "aligns neurons by optimal transport, then averages", files=False),
    "pfnm": Entry(pfnm, ("captured",), "matches neurons or adds them: a wider network", rounds=False, files=False),
    "dense": Entry(dense, (), "a student learns the ensemble's answers on invented examples", files=False),
    "fedbens": Entry(
        fedbens, (*_FISHER, "others"), "an ensemble of the joint posterior's modes", rounds=False, files=False
    ),
    "fedfish": Entry(
        _fedfish,
        ("captured",),
        "averages updates by each client's diagonal Fisher; scale=mean: divided by its mean, estimator=squares: from "
        "gradients",
    ),
    "fedfish-kfac": Entry(
        partial(fedfish, structure="kronecker"),
        ("captured",),
        "the same with exact Kronecker factors",
        damping=DAMPING["kronecker"],
    ),
    "fipa": Entry(
        _fipa,
        ("captured",),
        "a Gauss–Newton step in the span of the clients' top Fisher eigenvectors; @last: in the last layer, @memory: "
        "with past rounds' Fishers, @paper: without damping, @public: as public codes step",
        variants={
            "last": {"last": True},
            "memory": {"past": PastFishers()},
            "paper": {"step": PAPER_FIPA},
            "public": {"step": public_fipa_step()},
        },
    ),
    "pseudo-data": Entry(
        pseudo_data,
        _FISHER,
        "K-FAC merge, then training on draws of the classes' inputs",
        damping=DAMPING["kronecker"],
    ),
    "analytic": Entry(analytic, ("captured",), "last layer by least squares on the start's features; no training"),
    "recalibrate": Entry(recalibrate, ("captured",), "the same at a merged model: fedavg+recalibrate"),
    "natural-gradient": Entry(
        natural_gradient,
        _FISHER,
        "steps on all clients' loss, two exchanges each: analytic+natural-gradient,steps=2",
    ),
}


def _released_fedfisher(
    apply: Callable, likelihood: Likelihood, *, structure: str, validation: Callable, **options: Any
) -> Rule:
    solver = paper_loop(released_adam(structure), validation=validation)
    return fedfisher(apply, likelihood, structure=structure, solver=solver, **options)


RELEASED: dict[str, Entry] = RULES | {
    **{
        name: Entry(partial(_released_fedfisher, structure=structure), (*_FISHER, "validation"))
        for name, structure in SOLVED.items()
    },
    "regmean": Entry(released_regmean, ("captured",)),
    "otfusion": Entry(released_ot_fusion, ("captured",)),
    "pfnm": Entry(released_pfnm, ("captured",)),
    "dense": Entry(partial(dense, settings=RELEASED_DENSE), ("validation",)),
}
"""The rules with the FedFisher authors' settings where they have some."""


def named_rule(
    name: str,
    apply: Callable,
    likelihood: Likelihood,
    *,
    offers: Mapping[str, Any] | None = None,
    rules: Mapping[str, Entry] = RULES,
    **options: Any,
) -> Rule:
    """Make a rule by its name in `rules`, or `module:function` where function(apply, likelihood, **options) → Rule.

    Names with a plus between them are exchanges one after the other, see `then`: "fedfisher-kfac+fedavg". After commas
    stand options, see `options_of`: "fedfisher-kfac,damping=1", and after "@" the features of a rule that has some,
    "recalibrate,ridge=0.1@fc1,fc2:100", or its variants, "fipa@last,memory".

    The module is looked for on Python's path, and then in the current folder.

    Args:
        name: the rule's name.
        apply: (params, x [n, ...]) → outputs [n, ...]; examples do not mix.
        likelihood: what was fitted.
        offers: what a rule may have if it takes it; a user's own function takes those that are arguments of it by name.
        rules: `RULES` or `RELEASED`.
        options: what else this rule's constructor takes.

    Raises:
        ValueError: no such rule, option, module or function, or one of a user that fails or returns no rule.

    Example:
        >>> import fedfisher_jax as ff
        >>> from fedfisher_jax.merge.catalogue import named_rule
        >>> named_rule("fedfisher-kfac,damping=1+fedavg", lambda w, x: x @ w, ff.categorical()).name
        'fedfisher-kfac+fedavg'
    """
    if "+" in name:
        given = {"offers": offers, "rules": rules, **options}
        return composed(name, lambda part: named_rule(part, apply, likelihood, **given))
    name, words, after = named(name)
    entry = _entry(name, rules)
    chosen = arguments_of(name, words, known_options(entry), entry.damping)
    given = {key: value for key, value in (offers or {}).items() if key in entry.takes}
    more = options_after_at(name, entry, after) if after else {}
    try:
        said = records(entry.constructor, chosen, more)
        return entry.constructor(apply, likelihood, **given | options | more | said)
    except (TypeError, ValueError) as error:
        if words and isinstance(error, ValueError):  # a value that the rule refuses
            raise ValueError(f"rules: {name}: {error}") from error
        raise


def options_of(name: str) -> tuple[str, ...]:
    """Name the options that a rule (one part of it) takes as words after its name; it raises as `named_rule` does."""
    return tuple(known_options(_entry(named(name).name)))


def with_option(name: str, option: str, value: Any) -> str:
    """Write an option into every part of a name whose rule has it and does not say it already."""
    return "+".join(_with_option(part, option, value) for part in name.split("+"))


def goes_on(name: str) -> bool:
    """Tell whether another round can start from what a rule merges; of a user's own rule it is hoped."""
    first = [named(part).name for part in name.split("+")]
    return all(RULES[part].rounds for part in first if part in RULES)


def composed(name: str, make: Callable[[str], Rule]) -> Rule:
    """Make a rule of each name between pluses, and of them all one by `then`; a `make` that is cached shares parts."""
    return reduce(then, map(make, name.split("+")))


def takes(name: str) -> tuple[str, ...]:
    """Name what a rule (or any part of it) takes; a user's own function takes all of its arguments.

    It raises as `named_rule` does.
    """
    return tuple(dict.fromkeys(taken for part in name.split("+") for taken in _entry(named(part).name).takes))


def _with_option(part: str, option: str, value: Any) -> str:
    name, given, _ = named(part)
    if option in given or option not in known_options(_entry(name)):
        return part
    head, at, features = part.partition("@")
    return f"{head},{option}={value}{at}{features}"


def _entry(name: str, rules: Mapping[str, Entry] = RULES) -> Entry:
    if name in rules:
        return rules[name]
    if ":" not in name:
        raise ValueError(f"rules: got {name!r}, expected one of {', '.join(rules)}, or your own as module:function")
    return users_entry(name)

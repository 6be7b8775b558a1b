"""Merges that do not trust every client: centres and weights that a minority can move only so far.

Weights by distance serve every rule, since every rule weighs its clients; a coordinate's trimmed mean or median is a
merge of parameters in itself, so it serves FedAvg alone. None of this sees what looks like an honest client.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..curvature import quadratic, trace
from ..curvature.structures._protocol import Fisher
from ._centres import coordinate_median, geometric_median, trimmed_mean
from ._fold import fold
from ._rule import Carry, Merged, Payload, Rule, require_one_exchange, require_rule

PyTree = Any
How = Literal["cap", "trimmed", "median", "geometric-median", "krum", "outliers", "objective"]
COORDINATES = ("trimmed", "median")
READ_FAULTY = ("trimmed", "krum", "outliers")
TOLERATED = 2.0  # times the median disagreement, above which `objective` weighs a client down
STANDS_OUT = 3.5  # deviations above the median, beyond which `outliers` leaves a client out


def robust(rule: Rule, how: str, *, faulty: int | None = None, cap: float | None = None) -> Rule:
    """Make a rule robust against a minority of clients.

    Whatever `how` is, clients that send the same numbers share one client's weight, and no client has more than `cap`
    of all weight, nor of all weight times the trace of its Fisher. All payloads must be at hand: the rule stacks. What
    a rule keeps from round to round, it keeps of what is left of the clients.

    Args:
        rule: one exchange; for "trimmed" and "median" FedAvg.
        how: "cap" does no more than the above. "trimmed" and "median" are taken of each coordinate by itself, without
            weights. "geometric-median" weighs clients as `geometric_median` does, "krum" leaves out the `faulty` ones
            of largest `krum_scores`, "outliers" at most so many, those whose `oddity` is above 3.5, "objective" divides
            weights by `disagreements` where these are large.
        faulty: how many clients may be so; default (n − 3) // 2 of n, at least 1. For "trimmed", "krum" and "outliers".
        cap: the largest share of one client; default 2 / n.

    Raises:
        ValueError: what the rule, or the number of clients, does not allow.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedfisher_jax as ff
        >>> rule = ff.merge.robust(ff.fedavg(lambda w, x: x @ w, ff.categorical()), "median")
        >>> sent = [ff.Payload(jnp.asarray(1.0), jnp.full(1, value)) for value in (0.9, 1.0, 1.1, 1.2, -500.0)]
        >>> ff.merge_payloads(rule, sent).params.tolist()
        [1.0]
    """
    require_rule(rule)
    if how not in get_args(How):
        raise ValueError(f"how: got {how!r}, expected one of {', '.join(get_args(How))}")
    require_one_exchange(rule)
    if how in COORDINATES and rule.name != "fedavg":
        others = ", ".join(name for name in get_args(How) if name not in COORDINATES)
        raise ValueError(f"how: {how} merges parameters alone, as fedavg does; for {rule.name} expected {others}")
    if faulty is not None and how not in READ_FAULTY:
        raise ValueError(f"faulty: got {faulty}, which {how} does not read; expected it with {', '.join(READ_FAULTY)}")
    if cap is not None and not 0 < cap <= 1:
        raise ValueError(f"cap: got {cap}, expected a share above 0, at most 1")

    def distrusting(payloads: Payload, start: PyTree, solve: Callable[[Any], tuple[Merged, Any]]) -> tuple[Merged, Any]:
        """Solve by the rule (summary → model, what is kept) after the clients' weights and Fishers were lowered."""
        count = payloads.weight.shape[0]
        most = faulty_of(how, count, faulty)
        largest = 2 / count if cap is None else cap
        if largest * count < 1 - 1e-9:  # 1 / 49 times 49 is rounded to less than 1
            raise ValueError(f"cap: got {largest}, expected at least 1 / {count}, the share of one of {count} clients")
        if how in COORDINATES:
            centre = coordinate_median if how == "median" else lambda tree: trimmed_mean(tree, most)
            return Merged(centre(payloads.params), {"clients": jnp.asarray(count)}), None
        vectors = rows(payloads.statistics if payloads.params is None else payloads.params)
        begun = 0 if payloads.params is None or start is None else rows(jax.tree.map(lambda leaf: leaf[None], start))
        apart = squared_distances(vectors)
        weight = capped(payloads.weight / jnp.sum(apart == 0, axis=1), largest)
        weight = capped(weight * _factor(how, payloads, vectors, begun, apart, weight, most), largest)
        tamed = payloads._replace(weight=weight, statistics=_tamed(payloads.statistics, weight, largest))
        merged, kept = solve(fold(rule, jax.vmap(lambda one: rule.lift(one, start))(tamed)))
        share = weight / jnp.sum(weight)
        return merged._replace(diagnostics=merged.diagnostics | {"effective_clients": 1 / jnp.sum(share**2)}), kept

    def solve(payloads: Payload, start: PyTree) -> Merged:
        return distrusting(payloads, start, lambda summary: (rule.solve(summary, start), None))[0]

    def over_rounds(carry: Carry) -> Carry:
        return Carry(
            carry.init,
            lambda payloads, start, kept: distrusting(payloads, start, lambda s: carry.solve(s, start, kept)),
        )

    return rule._replace(
        name=f"{rule.name} ({how})",
        lift=lambda sent, start: sent,
        solve=solve,
        combine="stack",
        passes=False,
        carry=None if rule.carry is None else over_rounds(rule.carry),
    )


def faulty_of(how: str, count: int, faulty: int | None = None) -> int:
    """Tell how many of so many clients may be faulty, where the way asks for it.

    Raises:
        ValueError: a number that it does not stand.
    """
    most = max(1, (count - 3) // 2) if faulty is None else faulty
    least = {"trimmed": 2 * most + 1, "krum": 2 * most + 3, "outliers": 2 * most + 3}.get(how, 1)
    if most < 0 or count < least:
        raise ValueError(f"faulty: got {most} of {count} clients, expected at least {least} clients for {how}")
    return most


def rows(stacked: PyTree) -> Float[Array, "n d"]:
    """Write all numbers of each client as [n, d], from trees that are stacked along a leading axis."""
    leaves = jax.tree.leaves(stacked)
    return jnp.concatenate([jnp.reshape(leaf, (leaf.shape[0], -1)) for leaf in leaves], axis=1)


def squared_distances(vectors: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Compute squared Euclidean distances of all pairs of [n, d], as [n, n]; of equal rows exactly zero."""
    return jax.lax.map(lambda one: jnp.sum((vectors - one) ** 2, axis=1), vectors)


def krum_scores(squared: Float[Array, "n n"], faulty: int) -> Float[Array, " n"]:
    """Sum each client's squared distances to its n − faulty − 2 nearest others.

    Blanchard et al. (2017), "Machine learning with adversaries", NeurIPS, section 4. Clients that send the same numbers
    are not near each other here: one silo under two names would else be everybody's choice.

    Args:
        squared: `squared_distances`, [n, n].
        faulty: f, with n ≥ 2 f + 3.
    """
    count = squared.shape[0]
    apart = jnp.where(squared == 0, jnp.max(squared), squared)
    return jnp.sum(jnp.sort(_others(apart), axis=1)[:, : count - faulty - 2], axis=1)


def oddity(moves: Float[Array, "n d"], faulty: int) -> Float[Array, " n"]:
    """Tell how far each client stands out of the others by its move's direction or its length, in deviations.

    Who has more examples takes more steps, and so lies farther from everybody, without disagreeing: squared distances
    are ‖u‖² + ‖v‖² − 2 uᵀv. So `krum_scores` are those of moves of length one, and lengths are compared by themselves;
    the larger of both counts. The measure is ours; docs/privacy.md says what it does to honest clients and to liars.

    Args:
        moves: [n, d], from where all clients began; where nobody knows that, or no model is sent, from zero.
        faulty: f of `krum_scores`.
    """
    lengths = jnp.sqrt(jnp.sum(moves**2, axis=1))
    directions = moves / jnp.where(lengths > 0, lengths, 1)[:, None]
    return jnp.maximum(above(krum_scores(squared_distances(directions), faulty)), above(lengths))


def above(scores: Float[Array, " n"]) -> Float[Array, " n"]:
    """Count by how many deviations each of n scores lies above their median; infinite where the others are equal.

    The deviation is that of a normal distribution with the scores' median absolute deviation, m / 0.6745: Iglewicz and
    Hoaglin (1993), "How to detect and handle outliers", section 3.3, who call 3.5 of it an outlier.
    """
    gap = scores - jnp.median(scores)
    usual = jnp.median(jnp.abs(gap)) / 0.6745
    return jnp.where(usual > 0, gap / jnp.where(usual > 0, usual, 1), jnp.where(gap > 0, jnp.inf, 0))


def capped(weight: Float[Array, " n"], cap: float) -> Float[Array, " n"]:
    """Lower the largest of n weights so that none is more than `cap` of their sum; others stay as they are.

    With m weights cut to k: k = cap · (m k + the others' sum), for the least m that leaves all others below k.

    Args:
        weight: [n], not negative.
        cap: a share of at least 1 / n. Where fewer than 1 / cap weights are positive, none is lowered below the others.
    """
    order = -jnp.sort(-weight)
    cut = jnp.arange(weight.shape[0] + 1)
    rest = jnp.concatenate([jnp.cumsum(order[::-1])[::-1], jnp.zeros(1, weight.dtype)])  # without the m largest
    room = 1 - cap * cut
    level = jnp.where(room > 1e-6, cap * rest / jnp.where(room > 1e-6, room, 1), order[0])
    following = jnp.concatenate([order, jnp.zeros(1, weight.dtype)])
    fits = (following <= level) & (room > 1e-6)
    least = jnp.min(jnp.where(order > 0, order, jnp.inf))
    return jnp.minimum(weight, jnp.where(jnp.any(fits), jnp.maximum(level[jnp.argmax(fits)], 0), least))


def disagreements(payloads: Payload) -> Float[Array, " n"]:
    """Measure how much each client's quadratic and the others' disagree, [n]; our own measure.

    (θ_i − θ_j)ᵀ F_j (θ_i − θ_j) is what client j's loss grows by, to second order, with client i's model. A client's
    disagreement is the larger of two medians over the others: of what its model costs them, and of what theirs cost it
    by its own account. A model far away shows in the first, an enormous Fisher in the second. Without a Fisher it is
    the median squared distance.

    Args:
        payloads: stacked, with parameters.
    """

    def cost(one: PyTree) -> jax.Array:
        """What client j's loss grows by with this model, for all j."""

        def at(other: PyTree, fisher: Any) -> jax.Array:
            gap = jax.tree.map(jnp.subtract, one, other)
            squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gap))
            return jnp.asarray(squares if fisher is None else quadratic(fisher, gap))

        return jax.vmap(at)(payloads.params, payloads.statistics)

    costs = _others(jax.lax.map(cost, payloads.params)), _others(jax.lax.map(cost, payloads.params).T)
    return jnp.maximum(*(jnp.median(one, axis=1) for one in costs))


def _factor(
    how: str, payloads: Payload, vectors: jax.Array, begun: Any, apart: jax.Array, weight: jax.Array, faulty: int
) -> jax.Array:
    """What each client's weight is multiplied by; `begun` is where the clients' vectors began."""
    if how == "geometric-median":
        _, by = geometric_median(vectors, weight)
        return by / weight
    if how in ("krum", "outliers"):
        scores = krum_scores(apart, faulty) if how == "krum" else oddity(vectors - begun, faulty)
        kept = jnp.argsort(jnp.argsort(scores)) < len(weight) - faulty
        return jnp.asarray(kept if how == "krum" else kept | (scores <= STANDS_OUT), weight.dtype)
    if how == "objective":
        if payloads.params is None or not (payloads.statistics is None or isinstance(payloads.statistics, Fisher)):
            raise ValueError("how: objective reads models and their Fisher information, which these payloads lack")
        found = disagreements(payloads)
        usual = jnp.median(found)
        return jnp.where(found > TOLERATED * usual, TOLERATED * usual / jnp.where(found > 0, found, 1), 1)
    return jnp.ones_like(weight)


def _tamed(statistics: Any, weight: jax.Array, cap: float) -> Any:
    """Lower every Fisher in statistics, which may hold several, so that none has more than `cap` of weight × trace."""

    def lowered(one: Any) -> Any:
        if not isinstance(one, Fisher):
            return one
        size = weight * jax.vmap(trace)(one)
        kept = jnp.where(size > 0, capped(size, cap) / jnp.where(size > 0, size, 1), 1)
        return jax.vmap(lambda fisher, factor: fisher.scale(factor))(one, kept)

    return jax.tree.map(lowered, statistics, is_leaf=lambda node: isinstance(node, Fisher))


def _others(square: jax.Array) -> jax.Array:
    """A matrix [n, n] without its diagonal, [n, n − 1]."""
    count = square.shape[0]
    return square.reshape(-1)[1:].reshape(count - 1, count + 1)[:, :-1].reshape(count, count - 1)

"""How far nights scatter without cause: the standard deviation s of one night's value, and how far successive nights hang together.

Accuracies have seeds: s is the standard error of the plan, from the spread of paired differences over seeds, which steps and drifts leave
alone. Costs have nights only, and nights of one machine hang together (neighbours, heat, a new kernel), so that the differences of
successive nights alone say too little. Costs are therefore taken as AR(1) series of one common correlation rho between successive nights,
estimated over all of them from the ratio of two estimates: D, half the mean square of successive differences, and V, the variance of the
nights around their mean. Independent nights have D = V, an AR(1) series D = (1 - rho) V (von Neumann 1941). s follows for each cost from
its own V and D, as the likelihood of an AR(1) series weighs them, and is shrunk towards the middle of all costs: a cost with few nights,
or a new one, has the noise of the others (as Smyth 2004 does for genes).

A far night, and nights of an open regression, are not learned while they last, only their differences among each other. Where they went
away unaccepted they were noise, and are learned then.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

AGAIN = 2.4
"""Normal z from which a night is far."""
POOLED_FREEDOM = 8.0
"""How many nights of its own the other costs' noise is worth to a cost."""
MEDIAN = 0.4
"""How much of what the nights say is left in the median over metrics: its efficiency against the mean of squares."""
RHO, RHO_WEIGHT = 0.8, 20.0
"""The correlation to start from, and how many nights (of any cost) that is worth."""
LARGEST_RHO = 0.9
LEARNED = 4.0
"""How far from the mean, in s, a night that went away counts when it is learned."""
STEP_REACH = 3.0
"""How many standard deviations of it the difference of two nights counts: a step on a far night is no noise."""
SEED_REACH = 2.0
"""How far from the median of the seeds, in standard deviations of a seed, one seed counts."""

Array = NDArray[Any]


def var_of_mean(count: Array, rho: Array) -> Array:
    """Variance of the mean of `count` successive nights of an AR(1) series with variance 1."""
    return ((1 + rho) / (1 - rho) - 2 * rho * (1 - rho**count) / (count * (1 - rho) ** 2)) / count


def cov_with_level(count: Array, rho: Array, gap: Array) -> Array:
    """Covariance of the mean of `count` successive nights with the night that comes `gap` nights after the last of them."""
    return rho**gap * (1 - rho**count) / (count * (1 - rho))


def of_seeds(differences: Array, s: Array) -> Array:
    """A night's value from the differences of its seeds (last axis) to the baseline night: their mean, no seed counting further from their
    median than SEED_REACH standard deviations of such a difference, so that one seed alone never rings. `s`: standard error of the plan."""
    middle = np.median(differences, axis=-1, keepdims=True)
    reach = SEED_REACH * np.asarray(s)[..., None] * np.sqrt(2 * differences.shape[-1])
    return np.clip(differences, middle - reach, middle + reach).mean(-1)


class Noise:
    """Arrays, one entry a metric, that are replaced and never changed in place.

    `squares` over `nights` is V, about `centre`, the mean of `about` nights and the baseline; `halves` over `steps` is D; `pairs` over
    `pair_freedom` the spread over seeds. `kept_...`: nights that are `away`, far or open, until it is known what they are."""

    def __init__(self, prior: Array, prior_freedom: Array, pooled: Array) -> None:
        """`prior`: s squared to start from, worth `prior_freedom` degrees of freedom. `pooled`: costs, whose noise and correlation are shared."""
        self.prior, self.prior_freedom, self.pooled = prior, prior_freedom, pooled
        zero = np.zeros(np.shape(prior))
        self.pairs = self.pair_freedom = self.squares = self.nights = self.centre = self.about = self.halves = self.steps = zero
        self.kept_squares = self.kept_nights = self.kept_half = zero
        self.away = zero.astype(bool)

    def inherit(self, other: "Noise", index: Array) -> None:
        """Start from what `other` learned; `index`: which of its metrics each metric is, -1 for none."""
        for name in ("pairs", "pair_freedom", "squares", "nights", "halves", "steps"):
            setattr(self, name, np.where(index >= 0, getattr(other, name)[index], 0.0))

    def known(self) -> Array:
        """Where the noise is not the prior's alone: seeds, or nights of any cost."""
        some = (self.pooled & (self.nights + self.steps > 0)).any(-1, keepdims=True)
        return np.where(self.pooled, some, True)

    def pair(self, where: Array, spread: Array, freedom: Array) -> None:
        """Learn s squared from the spread over seeds of one night."""
        self.pairs = self.pairs + np.where(where, np.nan_to_num(spread) * freedom, 0.0)
        self.pair_freedom = self.pair_freedom + np.where(where, freedom, 0.0)

    def learn(self, where: Array, value: Array, last: Array, away: Array, s: Array, rho: Array) -> None:
        """Learn from a night's value and the one before. `away`: far, or open after tonight; such nights wait until it is known what they are."""
        half = np.minimum((value - last) ** 2 / 2, (1 - rho) * (STEP_REACH * s) ** 2)
        apart = np.minimum((value - self.centre) ** 2, (LEARNED * s) ** 2)
        leaves, stays, returns = (where & flags for flags in (away & ~self.away, away == self.away, ~away & self.away))
        self.kept_half = np.where(leaves, half, self.kept_half)
        out = where & away
        self.kept_squares = self.kept_squares + np.where(out, apart, 0.0)
        self.kept_nights = self.kept_nights + out
        self.halves = self.halves + np.where(stays, half, np.where(returns, half + self.kept_half, 0.0))
        self.steps = self.steps + np.where(stays, 1.0, np.where(returns, 2.0, 0.0))
        self.squares = self.squares + np.where(returns, self.kept_squares, 0.0)
        self.nights = self.nights + np.where(returns, self.kept_nights, 0.0)
        self.kept_squares, self.kept_nights = np.where(returns, 0.0, self.kept_squares), np.where(returns, 0.0, self.kept_nights)
        calm = where & ~away
        total = self.about + 1  # the baseline night itself is one more
        self.squares = self.squares + np.where(calm, (value - self.centre) ** 2 * total / (total + 1), 0.0)
        self.centre = np.where(calm, self.centre + (value - self.centre) / (total + 1), self.centre)
        self.about, self.nights = self.about + calm, self.nights + calm
        self.away = np.where(where, away, self.away)

    def rho(self) -> Array:
        """The correlation of successive nights, along the metrics: 0 for those that have seeds. Shape (..., 1)."""
        count = np.minimum(self.nights, self.steps)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (self.halves / self.steps) / (self.squares / self.nights)
        counts = self.pooled & (count > 2) & np.isfinite(ratio)
        top = np.where(counts, count * (1 - np.where(counts, ratio, 0.0)), 0.0).sum(-1, keepdims=True)
        bottom = np.where(counts, count - 2, 0.0).sum(-1, keepdims=True)  # V of few nights does not reach their whole range
        return np.clip((top + RHO * RHO_WEIGHT) / (bottom + RHO_WEIGHT), 0.0, LARGEST_RHO)

    def estimate(self, tonight: Array | None = None) -> tuple[Array, Array, Array]:
        """s, its degrees of freedom, and rho, per metric. `tonight`: half the squared difference of tonight to the night before, not learned yet."""
        common = self.rho()
        unpaired = self.nights + self.steps > 0
        rho = np.where(self.pooled | unpaired, common, 0.0)
        own, freedom = self._own(rho)
        base, base_freedom = self._shared(own, freedom, self.kept_half if tonight is None else tonight)
        own, freedom = own * freedom + self.pairs, freedom + self.pair_freedom
        total = base_freedom + freedom
        return np.sqrt((base * base_freedom + own) / total), total, rho

    def _own(self, rho: Array) -> tuple[Array, Array]:
        """s squared of each metric's own nights and its degrees of freedom."""
        spread, change = (1 - rho) * self.nights, 2 * rho * self.steps
        with np.errstate(divide="ignore", invalid="ignore"):
            v, d = np.nan_to_num(self.squares / self.nights), np.nan_to_num(self.halves / self.steps / (1 - rho))
            own = np.nan_to_num((spread * v + change * d) / (spread + change))
        return own, (spread + change) / (1 + rho)

    def _shared(self, own: Array, freedom: Array, half: Array) -> tuple[Array, Array]:
        """What a metric starts from: for costs the middle of all costs, with the prior while there are few nights of any.

        A cost that was far on its first night already is in that middle with its last difference, `half`: where it is left out, the calm
        ones would make too small a noise of it; where all costs got worse that night, the next difference tells.
        """
        waiting = self.pooled & (freedom <= 0.5) & self.away & np.isfinite(half)
        own, freedom = np.where(waiting, half / (1 - RHO), own), np.where(waiting, 1.0, freedom)
        counts = self.pooled & (freedom > 0.5)
        with np.errstate(divide="ignore", invalid="ignore"):
            centred = own / (1 - 2 / (9 * freedom)) ** 3  # by the median of a chi squared (Wilson and Hilferty 1931)
        known = np.where(counts, freedom, 0.0).sum(-1, keepdims=True)
        some = counts.any(-1, keepdims=True)
        values = np.where(some, np.where(counts, centred, np.nan), 0.0)
        middle = np.nanmedian(values, axis=-1, keepdims=True)
        base = (self.prior + middle * known) / (1 + known)
        total = np.minimum(np.maximum(self.prior_freedom, MEDIAN * known), POOLED_FREEDOM)
        return np.where(self.pooled, base, self.prior), np.where(self.pooled, total, self.prior_freedom)

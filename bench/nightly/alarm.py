"""When a series of nights rings: step, slow drift, return. NumPy arrays, one entry a metric along the last axis; no torch, no files.

A night's value is its difference to the baseline night, positive where it is worse; it is compared with the level, the mean of the first
REFERENCE independent nights, with that level's own error. Scores are Student's t turned into normal z. See `bench.nightly.noise` for how
the standard deviation of a night, and how far successive nights hang together, are learned. Three rules, each with a share of the suite's
false alarms:

now    one night is enough. Only for metrics whose runs can be bit-equal, and only where they are: the night before had the bits of the one
       before it, or tonight has those of the night before. A night whose bits are those of the night before is no new evidence and spends
       nothing; its share is kept for the night that changes, up to SAVED nights.
again  two nights running, each above AGAIN, their mean above its limit: one noisy night never rings.
drift  an exponentially weighted mean of the nights (weight WEIGHT) against the same level: small losses add up.

After a ring the level moves to what was reported, so that the same regression is not reported again and a worse one is. Two nights
running nearer to the old level than to the reported one, or a night with the baseline's own bits, close it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from bench.nightly.noise import AGAIN, Noise, cov_with_level, var_of_mean

SHARE = {"now": 0.007, "again": 0.007, "drift": 0.001}
"""Expected false alarms a night, all metrics of the suite together. Where bits repeat, accuracies have `now` and only costs the others; where
they do not, `now` is never used: 1 in 100 nights either way, and about half of that as measured."""
REFERENCE = 20
NEAR = 2.0
"""Normal z up to which a night enters the level."""
SAVED = 20
WEIGHT = 0.15
SETTLED = 0.5
"""Weight that nights since the last ring must have in the mean before it can ring for a drift: the fifth independent night."""
CLIP = 4.0
"""How far, in s, one night may pull that mean."""
POWER = 0.95
DRIFT_RATE = 0.2
"""Standard errors a night: the fastest drift for which the budget is computed; what is faster rings as a step."""

NONE, STEP, DRIFT, BACK = 0, 1, 2, 3
"""What a night means for a metric."""

Array = NDArray[Any]


@dataclass
class Night:
    """One night, arrays of one shape. `value`: difference to the baseline night, positive is worse; NaN where it was not measured.
    `spread`: an estimate of s squared from that night alone with `freedom` degrees of freedom; NaN: take the nights instead.
    `fresh`: the bits differ from the last measured night's. `equal`: they are the baseline's."""

    value: Array
    spread: Array
    freedom: Array
    fresh: Array
    equal: Array


class State:
    """What the nights so far left, per metric: arrays that are replaced, never changed in place."""

    def __init__(self, single: Array, noise: Noise) -> None:
        """`single`: the rule `now` applies. `noise`: see there."""
        self.single, self.noise = single, noise
        zero = np.zeros(np.shape(single))
        self.level = self.gap = self.mean = self.weight = self.squares = self.nearer = zero
        self.last = self.last_score = self.score = self.size = self.error = self.freedom = self.kept_level = zero
        self.count = self.kept_count = zero + 1  # the baseline night itself
        self.saved = zero + 1  # bits are taken to repeat until it is seen that they do not
        self.open = self.better = zero.astype(bool)

    @property
    def suspicious(self) -> Array:
        """Where the last night was far and nothing rang: a second night like it may ring."""
        return self.last_score > AGAIN


@dataclass(frozen=True)
class Limits:
    """`now`: tail probability of one night before what was saved; `again`, `drift`: z from which they ring."""

    now: float
    again: float
    drift: float


def limits(metrics: int, single: int) -> Limits:
    """The limits for a suite of so many metrics, of which `single` have the rule `now`: each gets an equal part of its rule's share."""
    return Limits(SHARE["now"] / max(1, single), *(float(-ndtri(SHARE[rule] / max(1, metrics))) for rule in ("again", "drift")))


def scored(difference: Array, error: Array, freedom: Array) -> Array:
    """Normal z of a difference whose standard error was estimated with so many degrees of freedom."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.asarray(difference / error, float)
    z = t.copy()
    far = np.nonzero(np.abs(t) > 1.5)  # below, no rule cares
    z[far] = -np.sign(t[far]) * ndtri(np.maximum(stdtr(np.broadcast_to(freedom, t.shape)[far], -np.abs(t[far])), 1e-300))
    return z


def _errors(state: State, rho: Array, gap: Array) -> tuple[Array, Array]:
    """In units of s: the standard errors of one night, and of the mean of it and the night before, against the level; `gap`: nights from the
    last one in the level to tonight."""
    level = var_of_mean(state.count, rho)
    one = 1 + level - 2 * cov_with_level(state.count, rho, gap)
    shared = cov_with_level(state.count, rho, gap) + cov_with_level(state.count, rho, np.maximum(gap - 1, 1))
    return np.sqrt(one), np.sqrt((1 + rho) / 2 + level - shared)


def _slow_error(squares: Array, weight: Array, count: Array, rho: Array) -> Array:
    """In units of s: the standard error of the weighted mean against the level."""
    together = (1 + (1 - WEIGHT) * rho) / (1 - (1 - WEIGHT) * rho)  # of an AR(1) series (Schmid 1997), once the mean has settled
    return np.sqrt(squares * together + weight**2 * var_of_mean(count, rho))


def step(state: State, night: Night, limit: Limits) -> Array:
    """Take a night in, changing `state`; gives NONE, STEP, DRIFT or BACK per metric. `state.size`, `error`, its
    `freedom` and `score` tell of those that ring."""
    seen = np.isfinite(night.value)
    equal = seen & night.equal
    fresh = seen & night.fresh & ~equal
    value = np.where(fresh, night.value, 0.0)
    state.saved = np.where(seen, np.minimum(state.saved + 1, SAVED), state.saved)
    state.noise.pair(fresh & np.isfinite(night.spread), night.spread, night.freedom)

    s, freedom, rho = state.noise.estimate(np.where(fresh, (night.value - state.last) ** 2 / 2, np.nan))
    gap = state.gap + fresh
    one, two = _errors(state, rho, np.maximum(gap, 1))
    error = s * one
    score = scored(value - state.level, error, freedom)
    both_error = s * two
    both_size = (value + state.last) / 2 - state.level
    both = scored(both_size, both_error, freedom)

    keep = 1 - WEIGHT
    pulled = state.level + np.clip(value - state.level, -CLIP * s, CLIP * s)
    mean = np.where(fresh, keep * state.mean + WEIGHT * pulled, state.mean)
    weight = np.where(fresh, 1 - keep * (1 - state.weight), state.weight)
    squares = np.where(fresh, keep**2 * state.squares + WEIGHT**2, state.squares)
    slow_error = s * _slow_error(squares, weight, state.count, rho)
    slow = scored(mean - state.level, slow_error, freedom)

    now_limit = -ndtri(np.minimum(0.5, limit.now * np.maximum(1, state.saved)))
    final = seen & ~night.fresh & ~equal & (state.saved == 1)  # last night's new bits come again: no other draw will
    value, score = np.where(final, state.last, value), np.where(final, state.last_score, score)
    now = state.single & (score > now_limit) & (fresh & (state.saved > 1) | final)
    again = fresh & (score > AGAIN) & (state.last_score > AGAIN) & (both > limit.again)
    drifted = fresh & (weight > SETTLED) & (slow > limit.drift)
    ring = now | again | drifted
    event = np.where(now | again, STEP, np.where(drifted, DRIFT, NONE))
    level = np.where(again, state.level + both_size, np.where(now, value, mean))
    base = np.where(state.open, state.kept_level, state.level)
    state.size = np.where(ring, level - base, state.size)
    state.error = np.where(ring, np.where(again, both_error, np.where(now, error, slow_error)), state.error)
    state.freedom = np.where(ring, freedom, state.freedom)
    state.score = np.where(ring, np.where(again, np.maximum(both, np.where(now, score, 0)), np.where(now, score, slow)), state.score)

    back = _close(state, value, equal, fresh & ~ring)
    event = np.where(back, BACK, event)

    near = np.abs(score) < NEAR  # an improvement must not become the measure unasked
    learn = fresh & ~ring & ~back & near & (state.count < REFERENCE)
    state.level = np.where(learn, state.level + (value - state.level) / (state.count + 1), state.level)
    state.count = np.where(learn, state.count + 1, state.count)

    newly = ring & ~state.open
    state.kept_level, state.kept_count = np.where(newly, state.level, state.kept_level), np.where(newly, state.count, state.kept_count)
    state.open = (state.open | ring) & ~back
    state.noise.learn(fresh & ~np.isfinite(night.spread), value, state.last, state.open | (np.abs(score) >= AGAIN), s, rho)
    state.level = np.where(ring, level, np.where(back, state.kept_level, state.level))
    state.count = np.where(ring, np.where(again, 2.0, np.where(now, 1.0, (2 - WEIGHT) / WEIGHT)), np.where(back, state.kept_count, state.count))
    moved = ring | back
    state.gap = np.where(learn | ring, 0, gap)
    state.mean = np.where(moved, state.level, mean)
    state.weight, state.squares = np.where(moved, 0.0, weight), np.where(moved, 0.0, squares)
    state.nearer = np.where(moved, 0, state.nearer)
    state.last = np.where(fresh, value, np.where(equal, 0.0, state.last))
    state.last_score = np.where(moved | equal, 0.0, np.where(fresh, score, state.last_score))
    state.saved = np.where(fresh, 0, state.saved)
    state.better = (fresh & state.single & (score < -now_limit)) | (state.better & ~fresh) | (fresh & (weight > SETTLED) & (slow < -limit.drift))
    return event


def _close(state: State, value: Array, equal: Array, quiet: Array) -> Array:
    """Where an open regression is over: nearer to the old level two nights running, or the baseline's own bits."""
    nearer = quiet & (value < (state.kept_level + state.level) / 2)
    state.nearer = np.where(nearer, state.nearer + 1, np.where(quiet, 0, state.nearer))
    return state.open & (equal | (state.nearer >= 2))


def smallest(state: State, limit: Limits) -> Array:
    """The step, in the metric's units, that is found within two nights in 95 of 100 cases, as things stand.

    Metrics of the rule `now` are taken to stay bit-equal after the step, so that one night decides, where they were so before; where they
    were not, the larger of both is given. The others have two nights.
    """
    s, freedom, rho = state.noise.estimate()

    def t(score: Any) -> Array:
        return stdtrit(freedom, 1 - stdtr(1e9, -np.asarray(score, float)))

    one, two = _errors(state, rho, state.gap + 1)[0], _errors(state, rho, state.gap + 2)[1]
    repeats = state.saved > 0  # the last night had the bits of the one before
    saved = np.where(repeats, np.minimum(state.saved + 1, SAVED), 1)
    miss = 1 - POWER  # half of it for the mean of two nights, a quarter for each of them
    alone = (t(-ndtri(limit.now * saved)) + stdtrit(freedom, 1 - miss)) * one
    each = (t(np.full_like(one, AGAIN)) + stdtrit(freedom, 1 - miss / 4)) * one
    pair = (t(np.full_like(one, limit.again)) + stdtrit(freedom, 1 - miss / 2)) * two
    twice = np.maximum(each, pair)
    return s * np.where(state.single, np.where(repeats, alone, np.maximum(alone, twice)), twice)


def budget(state: State, limit: Limits) -> Array:
    """How far, in the metric's units, a slow drift can get before it is found in 95 of 100 cases, as things stand."""
    s, freedom, rho = state.noise.estimate()
    squares = np.full_like(s, WEIGHT / (2 - WEIGHT))
    slow = _slow_error(squares, np.ones_like(s), state.count, rho)
    limit_t = stdtrit(freedom, 1 - stdtr(1e9, -np.full_like(s, limit.drift)))
    behind = DRIFT_RATE / WEIGHT  # the weighted mean follows a drift at this distance, found a night later
    return s * ((limit_t + stdtrit(freedom, 1 - (1 - POWER) / 4)) * slow + behind)  # to spare, since s is known no better than that

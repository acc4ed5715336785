"""When a series of nights rings: step, slow drift, return. NumPy arrays of any shape, one entry a metric; no torch, no files.

A night's value is its difference to the baseline night, positive where it is worse. The noise of one night's value has the standard
deviation s, the standard error of the plan, estimated from the spread of paired differences over seeds (steps and drifts leave it
alone) or, where a night has no seeds, from successive differences of nights; a prior with few degrees of freedom stands in at first.
A value is compared with the level of the first REFERENCE independent nights, with that level's own error. Scores are Student's t turned
into normal z. Three rules, each with a share of the suite's false alarms:

now    one night is enough. Only for metrics that a repeated night need not tell more about (bit-equal runs). A night whose bits are those
       of the night before is no new evidence and spends nothing; its share is kept for the night that changes, up to SAVED nights.
again  two nights running, each above AGAIN, their mean above its limit: one noisy night never rings.
drift  an exponentially weighted mean of the nights (weight WEIGHT) against the same level: small losses add up.

After a ring the level moves to what was reported, so that the same regression is not reported again and a worse one is. Two nights
running nearer to the old level than to the reported one, or a night with the baseline's own bits, close it.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

SHARE = {"now": 0.005, "again": 0.0035, "drift": 0.0015}
"""Expected false alarms a night, all metrics of the suite together; their sum is 1 in 100 nights."""
REFERENCE = 16
SAVED = 10
AGAIN = 2.4
WEIGHT = 0.15
SETTLED = 0.5
"""Weight that nights since the last ring must have in the mean before it can ring for a drift: the fifth independent night."""
CLIP = 4.0
"""How far, in s, one night may pull that mean."""
POWER = 0.95
DRIFT_BUDGET = 4.0
"""In standard errors of the plan: a slow drift is found, in 95 of 100 cases, before it has taken a metric so far."""

NONE, STEP, DRIFT, BACK = 0, 1, 2, 3
"""What a night means for a metric."""

Array = NDArray[Any]


@dataclass
class Night:
    """One night, arrays of one shape. `value`: difference to the baseline night, positive is worse; NaN where it was not measured.
    `spread`: an estimate of s squared from that night alone with `freedom` degrees of freedom; NaN: take successive nights instead.
    `fresh`: the bits differ from the last measured night's. `equal`: they are the baseline's."""

    value: Array
    spread: Array
    freedom: Array
    fresh: Array
    equal: Array


@dataclass
class State:
    """What the nights so far left, per metric. `single`: the rule `now` applies. `prior`: s squared to start from, worth `prior_freedom`."""

    single: Array
    prior: Array
    prior_freedom: Array
    level: Array = field(init=False)
    count: Array = field(init=False)
    mean: Array = field(init=False)
    weight: Array = field(init=False)
    squares: Array = field(init=False)
    spread_sum: Array = field(init=False)
    freedom: Array = field(init=False)
    last: Array = field(init=False)
    last_score: Array = field(init=False)
    saved: Array = field(init=False)
    open: Array = field(init=False)
    kept_level: Array = field(init=False)
    kept_count: Array = field(init=False)
    nearer: Array = field(init=False)
    better: Array = field(init=False)
    score: Array = field(init=False)
    size: Array = field(init=False)
    error: Array = field(init=False)

    def __post_init__(self) -> None:
        zero = np.zeros(np.shape(self.prior))
        for item in fields(self):
            if not item.init:
                setattr(self, item.name, zero.copy())
        self.count = zero + 1  # the baseline night itself
        self.spread_sum = self.prior * self.prior_freedom
        self.freedom = zero + self.prior_freedom
        self.open, self.better = zero.astype(bool), zero.astype(bool)
        self.kept_count = zero + 1

    @property
    def noise(self) -> Array:
        """s: the standard deviation of one night's value."""
        return np.sqrt(self.spread_sum / self.freedom)


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
    far = np.nonzero(t > 1.5)  # below, no rule cares
    z[far] = -ndtri(np.maximum(stdtr(np.broadcast_to(freedom, t.shape)[far], -t[far]), 1e-300))
    return z


def step(state: State, night: Night, limit: Limits) -> Array:
    """Take a night in, changing `state`; gives NONE, STEP, DRIFT or BACK per metric. `state.size`, `error` and `score` tell of those that ring."""
    seen = np.isfinite(night.value)
    equal = seen & night.equal
    fresh = seen & night.fresh & ~equal
    value = np.where(fresh, night.value, 0.0)
    state.saved = np.where(seen, np.minimum(state.saved + 1, SAVED), state.saved)

    paired = fresh & np.isfinite(night.spread)
    state.spread_sum = state.spread_sum + np.where(paired, np.nan_to_num(night.spread) * night.freedom, 0.0)
    state.freedom = state.freedom + np.where(paired, night.freedom, 0.0)

    noise = state.noise
    error = noise * np.sqrt(1 + 1 / state.count)
    score = scored(value - state.level, error, state.freedom)
    both_error = noise * np.sqrt(0.5 + 1 / state.count)
    both_size = (value + state.last) / 2 - state.level
    both = scored(both_size, both_error, state.freedom)

    keep = 1 - WEIGHT
    pulled = state.level + np.clip(value - state.level, -CLIP * noise, CLIP * noise)
    mean = np.where(fresh, keep * state.mean + WEIGHT * pulled, state.mean)
    weight = np.where(fresh, 1 - keep * (1 - state.weight), state.weight)
    squares = np.where(fresh, keep**2 * state.squares + WEIGHT**2, state.squares)
    slow_error = noise * np.sqrt(squares + weight**2 / state.count)
    slow = scored(mean - state.level, slow_error, state.freedom)

    now_limit = -ndtri(np.minimum(0.5, limit.now * np.maximum(1, state.saved)))
    now = fresh & state.single & (score > now_limit)
    again = fresh & (score > AGAIN) & (state.last_score > AGAIN) & (both > limit.again)
    drifted = fresh & (weight > SETTLED) & (slow > limit.drift)
    ring = now | again | drifted
    event = np.where(now | again, STEP, np.where(drifted, DRIFT, NONE))
    level = np.where(again, state.level + both_size, np.where(now, value, mean))
    base = np.where(state.open, state.kept_level, state.level)
    state.size = np.where(ring, level - base, state.size)
    state.error = np.where(ring, np.where(again, both_error, np.where(now, error, slow_error)), state.error)
    state.score = np.where(ring, np.where(again, np.maximum(both, np.where(now, score, 0)), np.where(now, score, slow)), state.score)

    back = _close(state, value, equal, fresh & ~ring)
    event = np.where(back, BACK, event)

    calm = fresh & ~ring & ~back & (score < AGAIN)
    unpaired = calm & ~np.isfinite(night.spread) & (state.last_score < AGAIN)
    state.spread_sum = state.spread_sum + np.where(unpaired, (value - state.last) ** 2 / 2, 0.0)
    state.freedom = state.freedom + np.where(unpaired, 1.0, 0.0)
    learn = calm & (score > -AGAIN) & (state.count < REFERENCE)  # an improvement must not become the measure unasked
    state.level = np.where(learn, state.level + (value - state.level) / (state.count + 1), state.level)
    state.count = np.where(learn, state.count + 1, state.count)

    newly = ring & ~state.open
    state.kept_level, state.kept_count = np.where(newly, state.level, state.kept_level), np.where(newly, state.count, state.kept_count)
    state.open = (state.open | ring) & ~back
    state.level = np.where(ring, level, np.where(back, state.kept_level, state.level))
    state.count = np.where(ring, np.where(again, 2.0, np.where(now, 1.0, (2 - WEIGHT) / WEIGHT)), np.where(back, state.kept_count, state.count))
    moved = ring | back
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

    Metrics of the rule `now` are taken to stay bit-equal after the step, so that one night decides; the others have two.
    """

    def t(score: Array) -> Array:
        return stdtrit(state.freedom, 1 - stdtr(1e9, -np.asarray(score)))

    one = np.sqrt(1 + 1 / state.count)
    saved = np.minimum(state.saved + 1, SAVED)
    alone = (t(-ndtri(limit.now * saved)) - ndtri(1 - POWER)) * one
    each = (t(np.full_like(one, AGAIN)) - ndtri((1 - POWER) / 2)) * one
    pair = (t(np.full_like(one, limit.again)) - ndtri(1 - POWER)) * np.sqrt(0.5 + 1 / state.count)
    return state.noise * np.where(state.single, alone, np.maximum(each, pair))

"""Made-up histories with known truth, many at once: arrays of the shape (histories, metrics) a night, taken through the alarm itself."""

from dataclasses import dataclass

import numpy as np

from bench.nightly import alarm

SEEDS = 4
ACCURACY, COSTS = 22, 13
"""Two metrics for each of eleven methods; eleven cost ratios and two benchmarks."""


@dataclass(frozen=True)
class World:
    """`bits`: runs are deterministic, all accuracies are drawn anew with probability `change` a night and stay the same otherwise.
    `step`, `drift`: of one metric of each history, drawn at random, from night `at`, in standard errors of the plan (a night).
    `outliers`: share of nights in which every cost is 4 standard errors worse. `heavy`: cost noise with the tails of t with 4 degrees."""

    histories: int = 1000
    nights: int = 100
    bits: bool = False
    change: float = 0.1
    step: float = 0.0
    drift: float = 0.0
    at: int = 30
    outliers: float = 0.0
    heavy: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    events: np.ndarray  # (nights, histories, metrics)
    target: np.ndarray  # (histories,): the metric that was made worse
    state: alarm.State
    noise: np.ndarray  # true s, (histories, metrics)

    @property
    def rings(self) -> np.ndarray:
        return np.isin(self.events, (alarm.STEP, alarm.DRIFT))

    @property
    def on_target(self) -> np.ndarray:
        """Rings of the metric that was made worse, (nights, histories)."""
        return self.rings[:, np.arange(len(self.target)), self.target]


def simulate(world: World) -> Outcome:
    draw = np.random.default_rng(world.seed)
    metrics = ACCURACY + COSTS
    shape = (world.histories, metrics)
    single = np.broadcast_to(np.arange(metrics) < ACCURACY, shape)
    spread_of_seed = np.exp(draw.normal(0, 0.3, shape))  # methods differ in their noise
    noise = np.where(single, spread_of_seed / np.sqrt(SEEDS), 0.02 * np.exp(draw.normal(0, 0.3, shape)))

    def seeds() -> np.ndarray:
        return draw.normal(size=(*shape, SEEDS)) * spread_of_seed[..., None]

    base = seeds()
    now = before = base
    base_cost = draw.normal(size=shape) * noise
    pooled = base.var(-1, ddof=1)[:, :ACCURACY].mean(-1, keepdims=True) / SEEDS
    state = alarm.State(single, np.where(single, pooled, 0.03**2), np.where(single, 8.0, 2.0))
    limit = alarm.limits(metrics, ACCURACY)
    target = draw.integers(0, metrics, world.histories)
    who = np.arange(world.histories), target
    events = np.zeros((world.nights, *shape), np.int8)
    # Where bits repeat, the standard error of a comparison is that of two draws.
    unit = noise * np.where(single & world.bits, np.sqrt(2), 1.0)
    for night in range(1, world.nights + 1):
        shift = np.zeros(shape)
        if night >= world.at:
            shift[who] = unit[who] * (world.step + world.drift * (night - world.at + 1))
        fresh = np.ones(shape, bool)
        if world.bits:
            fresh = np.broadcast_to(draw.random((world.histories, 1)) < world.change, shape).copy()
            if world.step and world.at <= night < world.at + 3:  # a change of this one method, and nothing else while we look
                fresh[:] = False
                fresh[who] = night == world.at
        now = np.where(fresh[..., None], seeds(), now)
        values = now + shift[..., None]
        cost = draw.standard_t(4, shape) / np.sqrt(2) if world.heavy else draw.normal(size=shape)
        cost = cost * noise + 4 * noise * (draw.random((world.histories, 1)) < world.outliers) + shift - base_cost
        spread = (values - before).var(-1, ddof=1) / 2 / SEEDS
        before = np.where(fresh[..., None], values, before)
        events[night - 1] = alarm.step(
            state,
            alarm.Night(
                np.where(single, (values - base).mean(-1), cost),
                np.where(single, spread, np.nan),
                np.full(shape, SEEDS - 1.0),
                np.where(single, fresh, True),
                np.zeros(shape, bool),
            ),
            limit,
        )
    return Outcome(events, target, state, noise)

"""Made-up histories with known truth, many at once: arrays of the shape (histories, metrics) a night, taken through the alarm itself.

`python -m tests.bench.nightly.simulation` prints the figures of docs/nightly.md; MODELS are the noise models it is held to.
"""

from dataclasses import dataclass, replace

import numpy as np

from bench.nightly import alarm
from bench.nightly.noise import Noise, of_seeds
from bench.nightly.verdict import PRIOR_RATIO, RATIO_FREEDOM, SEED_FREEDOM

SEEDS = 4
METHODS = 36
ACCURACY, COSTS = 2 * METHODS, METHODS + 2
"""Two metrics and a cost ratio for each method, two benchmarks."""


@dataclass(frozen=True)
class World:
    """`bits`: runs are deterministic, all accuracies are drawn anew with probability `change` a night and stay the same otherwise.
    `step`, `drift`: of one metric of each history, drawn at random, from night `at`, in standard errors of the plan (a night); `printed`: the
    step is instead what the alarm calls the smallest it is sure to find, the night before.

    The noise of costs, in units of its own standard deviation (`noise` on average, differing between costs by exp of a normal of `differ`):
    `rho`: AR(1); `modes`: so many standard deviations slower in one of two modes of ten nights each, `alone`: of each cost by itself;
    `heavy`: Student's t with 3 degrees of freedom; `week`: so much slower on two nights of seven; `outliers`: share of nights in which every
    cost is 4 slower; `common`: share of the variance that all costs have together. `heavy_seeds`: the same t for the seeds."""

    histories: int = 300
    nights: int = 100
    bits: bool = False
    change: float = 0.1
    step: float = 0.0
    drift: float = 0.0
    printed: bool = False
    at: int = 30
    noise: float = 0.01
    differ: float = 0.3
    rho: float = 0.0
    modes: float = 0.0
    alone: bool = False
    heavy: bool = False
    heavy_seeds: bool = False
    week: float = 0.0
    outliers: float = 0.0
    common: float = 0.0
    seed: int = 0


MODELS = {
    "independent, normal": World(),
    "AR(1), correlation 0.3": World(rho=0.3),
    "AR(1), correlation 0.5": World(rho=0.5),
    "AR(1), correlation 0.8": World(rho=0.8),
    "two modes of ten nights, 3 apart, of the machine": World(modes=3.0),
    "heavy tails of nights (t, 3)": World(heavy=True),
    "heavy tails of seeds (t, 3)": World(heavy_seeds=True),
    "two nights of a week slower by 3": World(week=3.0),
    "outliers, 4 slower, every twentieth night": World(outliers=0.05),
    "noise differs between costs by a factor of 2": World(differ=0.7),
}
"""The ten noise models of costs (one of seeds)."""
BEYOND = {
    "two modes of ten nights, 3 apart, of each cost alone": World(modes=3.0, alone=True),
    "two modes of ten nights, 6 apart, of the machine": World(modes=6.0),
    "half of the variance common to all costs": World(common=0.5),
    "AR(1), correlation 0.8, half of it common": World(common=0.5, rho=0.8),
    "nights bit-equal until the code changes": World(bits=True),
    "the same, heavy tails of seeds (t, 3)": World(bits=True, heavy_seeds=True),
}


@dataclass(frozen=True)
class Outcome:
    events: np.ndarray  # (nights, histories, metrics)
    target: np.ndarray  # (histories,): the metric that was made worse
    state: alarm.State
    noise: np.ndarray  # true s, (histories, metrics)
    size: np.ndarray  # (histories,): by how much, in the metric's units

    @property
    def rings(self) -> np.ndarray:
        return np.isin(self.events, (alarm.STEP, alarm.DRIFT))

    @property
    def on_target(self) -> np.ndarray:
        """Rings of the metric that was made worse, (nights, histories)."""
        return self.rings[:, np.arange(len(self.target)), self.target]

    def false_alarms(self) -> float:
        """Nights with exit code 1 in 100 nights, where nothing was made worse."""
        rung = self.rings.any(-1)
        return float(100 * rung.mean())


class Costs:
    """The noise of costs night after night, in units of s."""

    def __init__(self, world: World, draw: np.random.Generator) -> None:
        self.world, self.draw, self.night = world, draw, int(draw.integers(0, 7))
        self.shape = (world.histories, COSTS)
        self.series = self._independent()
        width = COSTS if world.alone else 1
        self.mode = draw.integers(0, 2, (world.histories, width))
        self.left = draw.integers(0, 10, (world.histories, width))
        self.weekday = draw.integers(0, 7, (world.histories, 1))

    def _independent(self) -> np.ndarray:
        if self.world.heavy:
            return self.draw.standard_t(3, self.shape) / np.sqrt(3)
        own, common = self.draw.normal(size=self.shape), self.draw.normal(size=(self.shape[0], 1))
        return np.sqrt(1 - self.world.common) * own + np.sqrt(self.world.common) * common

    def draw_night(self) -> np.ndarray:
        world, rho = self.world, self.world.rho
        self.series = rho * self.series + np.sqrt(1 - rho**2) * self._independent()
        switches = self.left == 0
        self.mode, self.left = np.where(switches, 1 - self.mode, self.mode), np.where(switches, 9, self.left - 1)
        self.weekday = (self.weekday + 1) % 7
        odd = self.draw.random((world.histories, 1)) < world.outliers
        return self.series + world.modes * self.mode + world.week * (self.weekday < 2) + 4.0 * odd


def seed_error(noise: Noise) -> np.ndarray:
    """s of the accuracies, which `noise.estimate()` gives too: what it learns of nights is the costs' alone."""
    return np.sqrt((noise.prior * noise.prior_freedom + noise.pairs) / (noise.prior_freedom + noise.pair_freedom))[:, :ACCURACY]


def simulate(world: World) -> Outcome:
    draw = np.random.default_rng(world.seed)
    metrics = ACCURACY + COSTS
    shape = (world.histories, metrics)
    single = np.broadcast_to(np.arange(metrics) < ACCURACY, shape)
    spread_of_seed = np.exp(draw.normal(0, 0.3, shape[:1] + (ACCURACY,)))  # methods differ in their noise
    noise = np.concatenate([spread_of_seed / np.sqrt(SEEDS), world.noise * np.exp(draw.normal(0, world.differ, (world.histories, COSTS)))], -1)
    costs = Costs(world, draw)

    def seeds() -> np.ndarray:
        size = (world.histories, ACCURACY, SEEDS)
        drawn = draw.standard_t(3, size) / np.sqrt(3) if world.heavy_seeds else draw.normal(size=size)
        return drawn * spread_of_seed[..., None]

    base = seeds()
    now = before = base
    base_cost = costs.draw_night()
    pooled = base.var(-1, ddof=1).mean(-1, keepdims=True) / SEEDS
    prior, freedom = np.where(single, pooled, PRIOR_RATIO**2), np.where(single, SEED_FREEDOM, RATIO_FREEDOM)
    state = alarm.State(single, Noise(prior, freedom, ~single))
    limit = alarm.limits(metrics, ACCURACY)
    target = draw.integers(0, metrics, world.histories)
    who = np.arange(world.histories), target
    events = np.zeros((world.nights, *shape), np.int8)
    # Where bits repeat, the standard error of a comparison is that of two draws.
    unit = noise * np.where(single & world.bits, np.sqrt(2), 1.0)
    size = unit[who] * world.step
    for night in range(1, world.nights + 1):
        shift = np.zeros(shape)
        if night == world.at and world.printed:
            size = alarm.smallest(state, limit)[who]
        if night >= world.at:
            shift[who] = size + unit[who] * world.drift * (night - world.at + 1)
        fresh = np.ones(shape, bool)
        if world.bits:
            fresh = np.broadcast_to(draw.random((world.histories, 1)) < world.change, shape).copy()
            if (world.step or world.printed) and world.at <= night < world.at + 3:  # a change of this one method, and nothing else while we look
                fresh[:] = False
                fresh[who] = night == world.at
            fresh[:, ACCURACY:] = True
        now = np.where(fresh[:, :ACCURACY, None], seeds(), now)
        values = now + shift[:, :ACCURACY, None]
        cost = (costs.draw_night() - base_cost) * 1.0
        accuracy = of_seeds(values - base, seed_error(state.noise))
        spread = np.full(shape, np.nan)
        spread[:, :ACCURACY] = (values - before).var(-1, ddof=1) / 2 / SEEDS
        before = np.where(fresh[:, :ACCURACY, None], values, before)
        value = np.concatenate([accuracy, cost * noise[:, ACCURACY:] + shift[:, ACCURACY:]], -1)
        tonight = alarm.Night(value, spread, np.full(shape, SEEDS - 1.0), fresh, np.zeros(shape, bool))
        events[night - 1] = alarm.step(state, tonight, limit)
    return Outcome(events, target, state, noise, size)


def power(world: World) -> tuple[float, float]:
    """How often the step is found within two nights: of accuracies, of costs."""
    outcome = simulate(replace(world, nights=world.at + 1))
    found = outcome.on_target[world.at - 1 : world.at + 1].any(0)
    accuracy = outcome.target < ACCURACY
    return float(found[accuracy].mean()), float(found[~accuracy].mean())


def printed_size(world: World) -> float:
    """The smallest step sure to ring that is printed for costs after the night before `at`, in their true standard deviations; the median."""
    outcome = simulate(replace(world, nights=world.at - 1))
    return float(np.median((alarm.smallest(outcome.state, alarm.limits(ACCURACY + COSTS, ACCURACY)) / outcome.noise)[:, ACCURACY:]))


def drifts(world: World) -> tuple[float, float]:
    """The budget that is printed before the drift begins, in standard errors (the median), and how often the drift is found before it is so far."""
    before = simulate(replace(world, nights=world.at - 1, drift=0.0))
    who = np.arange(world.histories), before.target
    budget = (alarm.budget(before.state, alarm.limits(ACCURACY + COSTS, ACCURACY)) / before.noise)[who]
    nights = np.floor(budget / world.drift).astype(int)  # that it has
    rings = simulate(replace(world, nights=world.at - 1 + nights.max())).on_target[world.at - 1 :]
    found = rings & (np.arange(len(rings))[:, None] < nights)
    return float(np.median(budget)), float(found.any(0).mean())


def header(*heads: str) -> None:
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)


def main() -> None:
    header("noise", "false alarms in 100 nights", "step of 5 found, accuracy", "cost", "printed for a cost, in standard deviations")
    for name, world in {**MODELS, **BEYOND}.items():
        at = replace(world, at=20)
        found = power(replace(at, step=5.0, histories=1000))
        alarms, size = simulate(world).false_alarms(), printed_size(at)
        print(f"| {name} | {alarms:.2f} | {100 * found[0]:.0f} % | {100 * found[1]:.0f} % | {size:.1f} |", flush=True)
    header("noise", "step as printed after night 5, cost: found", "after night 20", "after night 60")
    for name, world in {**MODELS, **BEYOND}.items():
        found = [power(replace(world, printed=True, at=at, histories=600))[1] for at in (5, 20, 60)]
        print(f"| {name} | {' | '.join(f'{100 * share:.0f} %' for share in found)} |", flush=True)
    header("after night", "step as printed, accuracy: found", "cost, noise 1 %", "cost, noise 5 %", "printed for a cost, noise 1 %")
    for at in (2, 3, 5, 10, 20, 40):  # the baseline night is the first
        world = World(printed=True, at=at, histories=1000)
        found, wide = power(world), power(replace(world, noise=0.05))
        size = 100 * np.expm1(0.01 * printed_size(world))
        print(f"| {at} | {100 * found[0]:.0f} % | {100 * found[1]:.0f} % | {100 * wide[1]:.0f} % | {size:.0f} % |", flush=True)
    header("worse from the second night on", "noise", "found by night 3", "4", "6", "11")
    for worse in (1.1, 1.2, 1.5, 2.0, 10.0):
        for noise in (0.01, 0.02):
            outcome = simulate(World(step=np.log(worse) / noise, differ=0.0, at=1, noise=noise, nights=10))
            rings = np.logical_or.accumulate(outcome.on_target[:, outcome.target >= ACCURACY], 0).mean(1)
            print(f"| x{worse} | {noise:.0%} | {' | '.join(f'{100 * rings[i]:.0f} %' for i in (1, 2, 4, 9))} |", flush=True)
    header("drift a night", "found within the budget printed", "budget, the median")
    for rate in (0.05, 0.1, 0.2):
        size, found = drifts(World(drift=rate, at=25))
        print(f"| {rate} | {100 * found:.0f} % | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main()

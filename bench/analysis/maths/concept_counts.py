"""What is counted on entropy maps: concepts, their ratio, learning speed, detours (Cheng et al., CVPR 2020, Eq. 3-5). numpy alone."""

from collections.abc import Callable, Sequence

import numpy as np

METRICS = ("fg", "bg", "ratio", "d_mean", "d_var", "rho")
UP = {"fg": 1, "bg": -1, "ratio": 1, "d_mean": -1, "d_var": -1, "rho": 1}
"""The sign of what the hypotheses call better."""


def concepts(entropy: np.ndarray, foreground: np.ndarray, b: float, per_image: bool = False) -> np.ndarray:
    """Which cells are concepts: mean H of the background - H > b (Eq. 3). entropy (K, N, G, G) of K checkpoints, foreground (N, G, G) bool.

    The mean is over all images' backgrounds at a checkpoint (the authors' code), or over each image's own (`per_image`, as printed).
    """
    background = ~foreground
    sums, cells = (entropy * background).sum((2, 3)), background.sum((1, 2))
    if per_image:
        mean = sums / np.maximum(cells, 1)
    else:
        mean = np.repeat(sums.sum(1, keepdims=True) / max(1, cells.sum()), len(foreground), 1)
    return mean[:, :, None, None] - entropy > b


def counts(found: np.ndarray, foreground: np.ndarray) -> dict[str, np.ndarray]:
    """fg, bg and ratio = fg / (fg + bg) (0 where both are 0), each (K, N), from concepts (K, N, G, G)."""
    fg, bg = (found & foreground).sum((2, 3)), (found & ~foreground).sum((2, 3))
    return {"fg": fg.astype(float), "bg": bg.astype(float), "ratio": fg / np.maximum(fg + bg, 1)}


def distances(fg: np.ndarray, path: Sequence[float]) -> np.ndarray:
    """How far the weights went until an image had most concepts (Eq. 4): fg (K, N), path[k] = |w_k - w_(k-1)| / |w_0|, path[0] = 0 -> (N,).

    Of several checkpoints with as many concepts the first counts.
    """
    return np.cumsum(path)[fg.argmax(0)]


def detours(found: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """rho = concepts of the last checkpoint over those of any (Eq. 5), on the foreground: (K, N, G, G) -> (N,); NaN where there never was one."""
    on = found & foreground
    ever, last = on.any(0).sum((1, 2)), on[-1].sum((1, 2))
    return np.where(ever > 0, last / np.maximum(ever, 1), np.nan)


def effective(entropy: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Images that the code's selection keeps: mean H lower on the foreground than on the background at each checkpoint given.

    entropy (K, N, G, G) -> (N,) bool."""
    fg = (entropy * foreground).sum((2, 3)) / np.maximum(foreground.sum((1, 2)), 1)
    bg = (entropy * ~foreground).sum((2, 3)) / np.maximum((~foreground).sum((1, 2)), 1)
    return (fg < bg).all(0)


def statistic(metric: str, values: np.ndarray) -> np.ndarray:
    """A metric over images, the last axis: the variance (ddof 0, what paper and code call D_std) for d_var, else the mean; NaN is left out."""
    return np.nanvar(values, -1) if metric == "d_var" else np.nanmean(values, -1)


def numbered(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The images that have a number in all networks of both sides, (seeds, N) each -> (N,) bool."""
    return ~np.isnan(ours).any(0) & ~np.isnan(theirs).any(0)


def interval(
    metric: str, ours: np.ndarray, theirs: np.ndarray, generator: np.random.Generator, draws: int, seeds: bool
) -> tuple[float, float, float]:
    """The mean over seeds of statistic(ours) - statistic(theirs), (seeds, N) each, with its 95 % bootstrap interval: paired resampling of the images,
    the same for all networks, and with `seeds` of the seeds too. Only images that are `numbered` count."""
    has = numbered(ours, theirs)
    ours, theirs = ours[:, has], theirs[:, has]
    count, n = ours.shape

    def difference(rows: np.ndarray, columns: np.ndarray) -> float:
        at = np.ix_(rows, columns)
        return float((statistic(metric, ours[at]) - statistic(metric, theirs[at])).mean())

    every = np.arange(count)
    found = [difference(generator.integers(count, size=count) if seeds else every, generator.integers(n, size=n)) for _ in range(draws)]
    low, high = np.quantile(found, (0.025, 0.975))
    return difference(every, np.arange(n)), float(low), float(high)


def verdict(metric: str, low: float, high: float) -> str:
    """better, tie or worse, as the interval of S - B lies to zero and the hypothesis asks."""
    sign: Callable[[float], float] = lambda v: UP[metric] * v  # noqa: E731
    least, most = sorted((sign(low), sign(high)))
    return "better" if least > 0 else "worse" if most < 0 else "tie"

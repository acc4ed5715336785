"""Class-balanced sub-sampling of a training set."""

import numpy as np

from bench.errors import UsageError

SEED = 100
"""Fixed: every run at one rate sees the same images, whatever its own seed."""


def balanced(labels: np.ndarray, rate: float) -> np.ndarray:
    """Indices, ascending, of a class-balanced fraction of a data set: round(rate * n) of the n images of each class, at least one.

    `labels` int (N,). Sets are nested: that of a lower rate lies inside that of a higher one. Raises UsageError unless 0 < rate <= 1.
    """
    if not 0 < rate <= 1:
        raise UsageError(f"sample rate {rate}: above 0 and at most 1")
    # Raw Philox output is the one stream that numpy promises never to change; the ranks of distinct keys are a permutation.
    keys = np.random.Philox(key=SEED).random_raw(len(labels))
    kept = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranked = members[np.argsort(keys[members], kind="stable")]
        kept.append(ranked[: max(1, int(rate * len(members) + 0.5))])
    return np.sort(np.concatenate(kept))

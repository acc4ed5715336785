import numpy as np
import pytest

from bench.data.subset import balanced
from bench.errors import UsageError

LABELS = np.random.Generator(np.random.PCG64(0)).permutation(np.repeat(np.arange(10), 40))


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.25, 0.1])
def test_every_class_keeps_its_fraction(rate):
    kept = balanced(LABELS, rate)
    assert np.bincount(LABELS[kept]).tolist() == [round(40 * rate)] * 10
    assert np.all(np.diff(kept) > 0)


def test_lower_rates_lie_inside_higher_ones():
    sets = [set(balanced(LABELS, rate).tolist()) for rate in (0.1, 0.25, 0.5, 1.0)]
    assert all(low < high for low, high in zip(sets, sets[1:], strict=False))


def test_the_choice_is_fixed_and_not_simply_the_first():
    kept = balanced(np.repeat(np.arange(2), 10), 0.3)
    assert kept.tolist() == balanced(np.repeat(np.arange(2), 10), 0.3).tolist()
    assert kept.tolist() != [0, 1, 2, 10, 11, 12]


def test_a_class_never_vanishes():
    assert len(balanced(np.arange(5), 0.1)) == 5


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5, float("nan")])
def test_rates_outside_are_refused(rate):
    with pytest.raises(UsageError, match="sample rate"):
        balanced(LABELS, rate)

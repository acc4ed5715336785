"""The pairs beyond the paper profile's, as in test_pairs: a file of their own, so that they run beside it."""

import pytest

from bench.plan.profiles import ALL_PAIRS
from tests.bench.plan.test_pairs import PAPER, takes_steps

OTHERS = [pair for pair in ALL_PAIRS if pair not in PAPER]


@pytest.mark.slow
@pytest.mark.parametrize("pair", OTHERS, ids=lambda pair: pair.name)
def test_every_method_takes_steps(tmp_path, pair, few, preparations):
    takes_steps(tmp_path, pair, few, preparations)

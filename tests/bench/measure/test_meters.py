"""Whether a probe's figures can be trusted: clocks of our own in place of load on the machine."""

import itertools
import statistics

import pytest
import torch

from bench.measure import meters

CPU = torch.device("cpu")


class Machine:
    """A core whose clock only a step moves; a neighbour leaves us `share` of it."""

    def __init__(self, monkeypatch) -> None:
        self.now = self.cpu = 0.0
        self.order: list[str] = []
        monkeypatch.setattr(meters, "clock", lambda: self.now)
        monkeypatch.setattr(meters, "cpu_time", lambda: self.cpu)

    def step(self, name: str, milliseconds, share: float = 1.0):
        def run() -> None:
            self.order.append(name)
            took = next(milliseconds) / 1000
            self.now, self.cpu = self.now + took, self.cpu + took * share

        return run


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_steps_take_turns_in_alternating_order(machine):
    turns = meters.in_turns({"a": machine.step("a", itertools.repeat(2.0)), "b": machine.step("b", itertools.repeat(1.0))}, 5, CPU)
    assert "".join(machine.order) == "bbaa" + "aabb" + "ba"
    assert turns.steps["a"] == pytest.approx([2.0] * 5) and turns.ratios("b", "a") == pytest.approx([0.5] * 3)
    assert turns.busy == pytest.approx(1.0) and not turns.noisy(turns.ratios("b", "a"), "ratios")


def test_a_ratio_within_rounds_is_not_moved_by_a_machine_that_slows_down(machine):
    """Twice as slow in the second half, for both: one after the other they would differ by half."""
    slow = lambda base: (base * (1 if i < 15 else 2) for i in itertools.count())  # noqa: E731
    turns = meters.in_turns({"a": machine.step("a", slow(2.0)), "b": machine.step("b", slow(1.0))}, 30, CPU)
    assert statistics.median(turns.ratios("b", "a")) == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "said"), [(0.5, "CPU time was 0.50 of the clock's"), (0.79, "something else ran"), (0.95, ""), (2.0, "")])
def test_beside_a_spinning_process_the_clocks_disagree(machine, share, said):
    turns = meters.in_turns({"a": machine.step("a", itertools.repeat(1.0), share)}, 6, CPU)
    noisy = turns.noisy(turns.steps["a"], "step times")
    assert said in noisy and bool(said) == bool(noisy)


@pytest.mark.parametrize(("spread", "noisy"), [(0.05, False), (0.5, True)])
def test_quartiles_that_disagree_are_noise(machine, spread, noisy):
    unsteady = itertools.cycle([1.0, 1.0 + spread, 1.0 + 2 * spread, 1.0 + spread])
    turns = meters.in_turns({"a": machine.step("a", unsteady)}, 12, CPU)
    assert ("quartiles of the step times" in turns.noisy(turns.steps["a"], "step times")) is noisy


def test_one_step_has_no_spread(machine):
    turns = meters.in_turns({"a": machine.step("a", itertools.repeat(3.0))}, 1, CPU)
    assert meters.quartiles(turns.steps["a"]) == pytest.approx((3.0, 3.0, 3.0)) and not turns.noisy(turns.steps["a"], "step times")

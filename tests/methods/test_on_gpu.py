"""Every method's step on a GPU: no synchronisation, deterministic algorithms exist, and a captured step equals the eager one."""

import copy

import pytest
import torch

from methods import registry
from methods.base import Batch
from tests.methods.cases import Case, backward, frozen_teacher, pictures

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
every = pytest.mark.parametrize("name", registry.names())
BATCH = 16


class OnDevice(Case):
    """A case on the GPU with fixed input tensors, so that its step can be captured."""

    @classmethod
    def of(cls, name: str) -> "OnDevice":
        case = super().of(name)
        case.student.cuda()
        case.method.cuda()
        case.teacher = copy.deepcopy(frozen_teacher()).cuda()
        case.images, case.labels = (t.cuda() for t in pictures(BATCH, 1))
        case.index = torch.arange(BATCH, device="cuda")
        return case

    def feed(self, seed: int) -> None:
        for held, new in zip((self.images, self.labels), pictures(BATCH, seed), strict=True):
            held.copy_(new)

    def run(self) -> dict[str, torch.Tensor]:
        for parameter in self.parameters:
            parameter.grad = None
        needs = self.method.teacher_needs(self.method.hyper)
        with torch.no_grad():
            teacher = self.teacher(self.images, needs.maps) if needs else None
        outputs = self.student(self.images, self.method.student_needs(self.method.hyper).maps)
        losses = self.method.losses(outputs, teacher, Batch(self.labels, self.index))
        backward(self.method, losses, self.parameters)
        return losses


@pytest.fixture
def strict(monkeypatch):
    """Deterministic algorithms, or an error where there is none."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def no_sync():
    yield lambda mode: torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.set_sync_debug_mode("default")


@every
def test_step_never_waits_for_the_device(name, no_sync):
    case = OnDevice.of(name)
    if not case.method.capturable:
        pytest.skip("declares that its step cannot be captured")
    case.run()
    no_sync("error")
    case.run()


@every
def test_step_has_deterministic_algorithms(name, strict):
    case = OnDevice.of(name)
    state = copy.deepcopy((case.student.state_dict(), case.method.state_dict()))
    results = []
    for _ in range(2):
        case.student.load_state_dict(state[0])
        case.method.load_state_dict(state[1])
        losses = case.run()
        results.append([*losses.values(), *(p.grad for p in case.parameters if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every
def test_captured_step_equals_eager(name):
    """Replayed on batches that it was not captured on."""
    case, eager = OnDevice.of(name), OnDevice.of(name)
    if not case.method.capturable:
        pytest.skip("declares that its step cannot be captured")
    stream = torch.cuda.Stream()
    state = copy.deepcopy((case.student.state_dict(), case.method.state_dict()))
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            case.run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        losses = case.run()
    gradients = {i: p.grad for i, p in enumerate(case.parameters) if p.grad is not None}
    for module, kept in zip((case.student, case.method), state, strict=True):
        module.load_state_dict(kept)
    for seed in (2, 3):
        case.feed(seed)
        eager.feed(seed)
        graph.replay()
        expected = eager.run()
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
        for i, gradient in gradients.items():
            reference = eager.parameters[i].grad
            assert (gradient - reference).norm() <= 1e-3 * reference.norm() + 1e-6

"""CRD against the reference's form, with rows gathered from both banks, in NumPy; its draws; its banks and constants from step to step."""

import numpy as np
import pytest
import torch

from methods.base import Batch, MethodError, Setting, check_hyper
from methods.crd import CRD, Hyper, Others, contrastive_loss, remember, scores, unit
from models.outputs import Outputs, Shapes
from models.randomness import generator, keyed

IMAGES, CLASSES, WIDTHS = 600, 10, (24, 40)
BATCHES = (64, 16, 1)


def labels_of(sizes: list[int]) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=generator(0, "labels"))]


EVEN, UNEVEN = labels_of([IMAGES // CLASSES] * CLASSES), labels_of([300, 4, 46, 0, 250])


def made(hyper: Hyper | None = None, labels: torch.Tensor = EVEN, dtype: torch.dtype = torch.float64, seed: int = 0) -> CRD:
    student, teacher = (Shapes("toy", CLASSES, width, {}) for width in WIDTHS)
    with keyed(seed, "crd"):
        method = CRD(hyper or Hyper(), Setting(student, teacher, CLASSES, len(labels))).to(dtype).train()
    method.start(labels)
    return method


def embeddings(batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    g = generator(seed, "embeddings")
    return [torch.randn(batch, width, generator=g).relu().to(dtype) for width in WIDTHS]


def places(method: CRD, size: int) -> torch.Tensor:
    """What the last step of a batch size was drawn."""
    return getattr(method, f"places_of_{size}")


def batch_of(size: int, step: int, labels: torch.Tensor = EVEN) -> Batch:
    index = torch.randperm(len(labels), generator=generator(0, "order", step))[:size]
    return Batch(labels[index], index)


def stepped(method: CRD, size: int, step: int = 0, labels: torch.Tensor = EVEN) -> tuple[torch.Tensor, list[torch.Tensor], Batch]:
    """The method's loss as the trainer has it computed, the embeddings it read, and its batch."""
    batch = batch_of(size, step, labels)
    method.begin_step(batch.index, generator(0, "step", step))
    s, t = embeddings(size, step, method.student_bank.dtype)
    loss = method.losses(Outputs(torch.zeros(size, CLASSES), s.requires_grad_()), Outputs(None, t), batch)["crd"]
    return loss, [s, t], batch


def numpy_side(e: np.ndarray, bank: np.ndarray, places: np.ndarray, constant: float | None, hyper: Hyper) -> tuple[float, float]:
    """One side's loss as the reference computes it, from gathered rows (B, 1 + K, D), and the constant it used."""
    out = np.exp(np.einsum("bkd,bd->bk", bank[places], e) / hyper.temperature)
    constant = out.mean() * len(bank) if constant is None else constant
    p, noise = out / constant, (places.shape[1] - 1) / len(bank)
    own = np.log(p[:, 0] / (p[:, 0] + noise + 1e-7))
    others = np.log(noise / (p[:, 1:] + noise + 1e-7))
    return -(own.sum() + others.sum()) / len(e), constant


class Reference:
    """The method in NumPy: projections, banks and constants of its own, starting where `method` stands."""

    def __init__(self, method: CRD) -> None:
        self.hyper, self.constants = method.hyper, [None, None]
        self.layers = [[p.detach().numpy().copy() for p in m.parameters()] for m in (method.project_student, method.project_teacher)]
        self.banks = [b.numpy().copy() for b in (method.student_bank, method.teacher_bank)]

    def loss(self, inputs: list[np.ndarray], places: np.ndarray, update: bool = True) -> float:
        e = [x @ weight.T + bias for x, (weight, bias) in zip(inputs, self.layers, strict=True)]
        e = [x / np.sqrt((x**2).sum(1, keepdims=True)) for x in e]
        sides = [numpy_side(e[i], self.banks[1 - i], places, self.constants[i], self.hyper) for i in (0, 1)]
        if update:
            self.constants = [constant for _, constant in sides]
            for bank, x in zip(self.banks, e, strict=True):
                for row, place in zip(x, places[:, 0], strict=True):
                    mixed = self.hyper.momentum * bank[place] + (1 - self.hyper.momentum) * row
                    bank[place] = mixed / np.sqrt((mixed**2).sum())
        return self.hyper.weight * (sides[0][0] + sides[1][0])


@pytest.mark.parametrize("sizes", [(64, 64, 16), (16, 64), (1, 16)], ids=str)
def test_value_and_banks_are_the_references(sizes):
    """Over steps of changing size: constants of the first batch, banks as the steps before left them."""
    method = made()
    reference = Reference(method)
    for step, size in enumerate(sizes):
        loss, inputs, _ = stepped(method, size, step)
        expected = reference.loss([x.detach().numpy() for x in inputs], places(method, size).numpy())
        assert loss.item() == pytest.approx(expected, rel=1e-11)
        for name, bank in zip(("student_bank", "teacher_bank"), reference.banks, strict=True):
            np.testing.assert_allclose(getattr(method, name).numpy(), bank, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("size", BATCHES)
def test_gradients_of_embeddings_and_projections(size):
    method = made()
    stepped(method, 64)  # sets the constants
    reference = Reference(method)
    reference.constants = [method.student_constant.item(), method.teacher_constant.item()]
    loss, inputs, _ = stepped(method, size, 1)
    loss.backward()
    drawn, (s, t) = places(method, size).numpy(), [x.detach().numpy() for x in inputs]
    rng, step = np.random.default_rng(0), 1e-6
    found = [(inputs[0].grad, s), *((p.grad, a) for p, a in zip(method.project_student.parameters(), reference.layers[0], strict=True))]
    found += [(p.grad, a) for p, a in zip(method.project_teacher.parameters(), reference.layers[1], strict=True)]
    for gradient, array in found:  # each changed in place, then put back
        way, kept, values = rng.standard_normal(array.shape), array.copy(), []
        for sign in (1, -1):
            array[...] = kept + sign * step * way
            values.append(reference.loss([s, t], drawn, update=False))
        array[...] = kept
        slope = (gradient.numpy() * way).sum()
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_the_product_with_the_bank_is_the_gathered_rows():
    """To float64 rounding, value and gradient."""
    g = generator(0, "gathered")
    bank = unit(torch.randn(2000, 128, dtype=torch.float64, generator=g))
    places = torch.stack([torch.randperm(2000, generator=g)[:1501] for _ in range(8)])
    both = [unit(torch.randn(8, 128, dtype=torch.float64, generator=generator(1, "gathered"))).requires_grad_() for _ in range(2)]
    product = scores(both[0], bank, places, 0.07)
    gathered = (torch.bmm(bank[places], both[1].unsqueeze(2)).squeeze(2) / 0.07).exp()
    torch.testing.assert_close(product, gathered, rtol=1e-12, atol=0)
    slopes = [torch.autograd.grad(contrastive_loss(x / x.detach().mean() / 2000, 2000), e)[0] for x, e in zip((product, gathered), both, strict=True)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-15)


def test_the_loss_at_hand():
    """One image, two others among four: p = 1/2, 1/4, 1/8 against K / N = 1/2."""
    found = contrastive_loss(torch.tensor([[0.5, 0.25, 0.125]], dtype=torch.float64), 4)
    expected = -(np.log(0.5 / (1 + 1e-7)) + np.log(0.5 / (0.75 + 1e-7)) + np.log(0.5 / (0.625 + 1e-7)))
    assert found.item() == pytest.approx(expected, rel=1e-14)


def test_float32_keeps_small_probabilities():
    """16,384 terms of about 6e-5 each: the logarithm of a ratio near 1 would lose them in float32."""
    p = torch.rand(4, 16385, dtype=torch.float64, generator=generator(0, "p")) * 4e-5
    assert contrastive_loss(p.float(), 50_000).item() == pytest.approx(contrastive_loss(p, 50_000).item(), rel=1e-5)


@pytest.mark.parametrize("labels", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("wanted", [7, 16384])
def test_draws_are_other_classes_without_replacement(labels, wanted):
    others = Others(labels, wanted)
    smallest = min(int((labels != c).sum()) for c in labels.unique())
    assert others.count == min(wanted, smallest)
    index = torch.arange(len(labels))
    drawn = others.draw(index, generator(0, "draws"))
    assert drawn.shape == (len(labels), others.count) and drawn.dtype == torch.int64
    assert (labels[drawn] != labels[index].unsqueeze(1)).all()
    assert all(len(row.unique()) == others.count for row in drawn)
    assert torch.equal(drawn, others.draw(index, generator(0, "draws")))
    assert not torch.equal(drawn, others.draw(index, generator(0, "draws", 1)))


def test_every_choice_is_equally_likely_and_of_its_own():
    """Three of nine others: each image, and each pair of images, as often among the choices as chance says; two images' choices too."""
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
    others, rounds = Others(labels, 3), 4_000
    g = generator(0, "frequency")
    drawn = torch.stack([others.draw(torch.tensor([0, 5]), g) for _ in range(rounds)])  # classes 0 and 2, nine others each
    chosen = torch.zeros(rounds, 2, len(labels)).scatter_(2, drawn, 1.0).double()
    one = chosen.mean(0)
    for row, c in zip(one, (0, 2), strict=True):
        assert torch.equal(row > 0, labels != c)
        assert (row[labels != c] - 1 / 3).abs().max() < 5 * (2 / 9 / rounds) ** 0.5
    among = torch.einsum("ri,rj->ij", chosen[:, 0], chosen[:, 0]) / rounds  # of one image: without replacement
    apart = among[labels != 0][:, labels != 0][~torch.eye(9, dtype=torch.bool)]
    assert (apart - 3 * 2 / 72).abs().max() < 6 * (1 / 12 / rounds) ** 0.5
    between = torch.einsum("ri,rj->ij", chosen[:, 0], chosen[:, 1]) / rounds  # of two images: independent
    assert (between[labels != 0][:, labels != 2] - 1 / 9).abs().max() < 6 * (8 / 81 / rounds) ** 0.5


def test_refuses_images_of_one_class():
    with pytest.raises(MethodError, match="one class"):
        Others(torch.zeros(5, dtype=torch.int64), 4)


def test_draws_are_written_in_place():
    """A recorded step of each batch size reads the same memory ever after."""
    method = made()
    held = {}
    for step, size in enumerate((16, 64, 16, 64)):
        batch = batch_of(size, step)
        method.begin_step(batch.index, generator(0, "step", step))
        held.setdefault(size, places(method, size).data_ptr())
        assert places(method, size).data_ptr() == held[size]
        assert torch.equal(places(method, size)[:, 0], batch.index) and places(method, size).shape == (size, 1 + method.others.count)


def test_banks_and_constants_are_state():
    method, other = made(), made(seed=1)
    stepped(method, 64)
    stepped(other, 16, 5)
    state = method.state_dict()
    assert {"student_bank", "teacher_bank", "student_constant", "teacher_constant"} <= state.keys() and "labels" not in state
    assert set(CRD.unreleased) == {"student_bank", "teacher_bank"}
    other.load_state_dict(state)
    first, second = (stepped(m, 16, 2)[0] for m in (method, other))
    assert torch.equal(first, second)


def test_constants_stay_those_of_the_first_batch():
    method = made()
    assert method.student_constant < 0 and method.teacher_constant < 0
    stepped(method, 16)
    kept = [method.student_constant.clone(), method.teacher_constant.clone()]
    stepped(method, 64, 1)
    assert all(c > 0 for c in kept) and [method.student_constant, method.teacher_constant] == kept


def test_a_bank_moves_at_the_batchs_places_alone():
    method = made(Hyper(momentum=0.25))
    before = method.student_bank.clone()
    _, inputs, batch = stepped(method, 16)
    moved = (method.student_bank != before).any(1)
    assert torch.equal(moved.nonzero().squeeze(1), batch.index.sort().values)
    e = unit(method.project_student(inputs[0])).detach()
    torch.testing.assert_close(method.student_bank[batch.index], unit(0.25 * before[batch.index] + 0.75 * e))
    assert not method.student_bank.requires_grad


def test_rows_start_within_the_references_bounds():
    bank = made(dtype=torch.float32).student_bank
    bound = 1 / (128 / 3) ** 0.5
    assert bank.abs().max() <= bound and bank.abs().max() > 0.99 * bound
    assert bank.square().sum(1).mean() == pytest.approx(1, abs=0.02)


def test_a_row_of_zeros_has_no_direction():
    rows = torch.zeros(2, 4).index_fill_(0, torch.tensor([1]), 2.0).requires_grad_()
    found = unit(rows)
    found.sum().backward()
    assert torch.equal(found[0], torch.zeros(4)) and torch.equal(rows.grad[0], torch.zeros(4))
    torch.testing.assert_close(found[1], torch.full((4,), 0.5))
    bank = torch.zeros(3, 4)
    remember(bank, torch.tensor([1]), torch.zeros(1, 4), 0.5)
    assert torch.equal(bank, torch.zeros(3, 4))


@pytest.mark.parametrize("values", [{"temperature": 0}, {"negatives": 0}, {"momentum": 1.5}, {"dimensions": 0}], ids=str)
def test_refuses_values(values):
    with pytest.raises(MethodError, match=rf"^crd.{next(iter(values))} is"):
        check_hyper("crd", Hyper(**values))


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("dead", ["student", "teacher"])
def test_dead_embeddings_and_equal_images(size, dead):
    method = made(dtype=torch.float32)
    batch = batch_of(size, 0)
    method.begin_step(batch.index, generator(0, "step"))
    s, t = embeddings(size, 0, torch.float32)
    (s if dead == "student" else t)[: (size + 1) // 2] = 0
    s[-1], t[-1] = s[0], t[0]
    loss = method.losses(Outputs(torch.zeros(size, CLASSES), s.requires_grad_()), Outputs(None, t), batch)["crd"]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(s.grad).all() and s.grad.abs().max() < 100
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())

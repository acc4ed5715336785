"""What the networks share: the channel shuffle held against its definition, value, gradient and memory order."""

import pytest
import torch

from models.layers import shuffled
from models.randomness import generator
from tests.models.reference import dealt


@pytest.mark.parametrize(("groups", "order"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 3, 1, 4, 2, 5]), (3, [0, 2, 4, 1, 3, 5])])
def test_channel_shuffle_by_hand(groups, order):
    x = torch.arange(6.0)[None, :, None, None].expand(2, 6, 3, 5)
    assert shuffled(x, groups)[1, :, 2, 4].tolist() == order


@pytest.mark.parametrize("last", [False, True], ids=["plain", "channels_last"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_channel_shuffle_and_its_gradient(groups, last):
    memory = torch.channels_last if last else torch.contiguous_format
    source = generator(1, "shuffle")
    x = torch.randn(3, 12, 4, 5, generator=source).contiguous(memory_format=memory).requires_grad_()
    out, expected = shuffled(x, groups), dealt(x, groups)
    assert torch.equal(out, expected) and (not last or out.is_contiguous(memory_format=torch.channels_last))
    weight = torch.randn(out.shape, generator=source)
    found, wanted = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (out, expected))
    assert torch.equal(found, wanted)
    assert torch.equal(shuffled(out, 12 // groups), x)  # dealt out the other way, they lie as before

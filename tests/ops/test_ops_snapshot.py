"""A snapshot keeps what a buffer was."""

import torch

from distiller_ng.ops.snapshot import snapshot


def test_it_is_a_copy_without_history():
    leaf = torch.ones(3, requires_grad=True)
    copy = snapshot(leaf * 2)
    assert not copy.requires_grad and copy.tolist() == [2, 2, 2]
    buffer = torch.zeros(2)
    kept = snapshot(buffer)
    buffer.fill_(7)
    assert kept.tolist() == [0, 0]


def test_torch_accepts_the_operator():
    torch.library.opcheck(torch.ops.distiller_ng.snapshot.default, (torch.ones(2, 3),))
    torch.library.opcheck(torch.ops.distiller_ng.snapshot.default, (torch.ones(2, 3).t(),))

"""What a trained vector moves by."""

from __future__ import annotations

import pytest
import torch

from steps.distill.relative import relative


@pytest.mark.parametrize(("bias", "moved"), [(True, [3.5, -9.0, 2.5, 0.0]), (False, [2.0, -14.0, 0.0, 0.0])])
def test_a_bias_moves_by_its_root_mean_square_and_all_else_by_itself(bias: bool, moved: list[float]) -> None:
    """A bias of 0 could never move by itself."""
    start = torch.tensor([1.0, -7.0, 0.0, 0.0])
    root = (50 / 4) ** 0.5
    vector = relative(start, "cpu", True, bias=bias)
    assert vector.delta_X is not None
    with torch.no_grad():
        vector.delta_X.copy_(torch.tensor([2.5, -2.0, 2.5, 0.0]) / root if bias else torch.tensor([1.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(vector.value(), torch.tensor(moved))

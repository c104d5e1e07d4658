"""Tensors in files behave like a dictionary and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steps.model.spill import Part, Spill, spill


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.int64])
def test_what_is_put_in_comes_out(dtype: torch.dtype, tmp_path: Path) -> None:
    held, tensor = Spill(tmp_path), torch.arange(24).view(4, 6).to(dtype)
    held["a/b c"], held["whole"] = tensor.T[1:3], tensor
    assert torch.equal(held["a/b c"], tensor.T[1:3]) and held["whole"].dtype == dtype
    held["whole"] = tensor + 1
    assert torch.equal(held["whole"], tensor + 1) and len(held) == len(list(tmp_path.iterdir())) == 2
    assert torch.equal(held.pop("a/b c"), tensor.T[1:3]) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(KeyError):
        held["a/b c"]
    held["another"] = tensor
    assert torch.equal(held["whole"], tensor + 1)


def test_it_ends_with_its_context(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), spill(tmp_path) as held:
        held["a"] = torch.zeros(3)
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_part_has_its_own_names_alone(tmp_path: Path) -> None:
    held = Spill(tmp_path)
    held["a"], held["b"] = torch.zeros(1), torch.ones(1)
    part = Part(held, frozenset("b"))
    assert list(part) == ["b"] and len(part) == 1 and "a" not in part and torch.equal(part["b"], torch.ones(1))
    with pytest.raises(KeyError):
        part["a"]

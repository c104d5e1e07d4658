"""Which device computes: what is there, or one clear error; and on a GPU one order of sums."""

from __future__ import annotations

import os

import pytest
import torch

from schemas.errors import InputError
from steps.device import CUBLAS_WORKSPACES, device_of


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """What torch is told, which it would keep for the rest of the process."""
    told: dict[str, bool] = {}
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: told.update(deterministic=mode))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it ends with the test, whoever sets it
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    return told


def test_without_a_gpu_auto_is_the_cpu_and_nothing_is_told(flags: dict[str, bool]) -> None:
    assert device_of("auto") == device_of("cpu") == "cpu" and flags == {}
    with pytest.raises(InputError, match="no CUDA device"):
        device_of("cuda")


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_is_told_to_add_in_one_order(asked: str, flags: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(asked) == "cuda" and flags == {"deterministic": True}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == CUBLAS_WORKSPACES
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device_of(asked)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # what a user set stays

"""The backward pass holds one batch, whoever asks for what, and leaves nothing in scratch."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from models import tiny_tokens, tiny_value

from steps.model.positions import batches
from steps.model.stream import Stream
from steps.model.whole import OUTSIDE
from steps.sensitivity.backward import backward
from steps.sensitivity.capture import Linears
from steps.step import Env

TOKENS = tiny_tokens(12, 16)
PARTS = list(batches(TOKENS, 4))
PATH = "self_attn.q_proj"


def squares(asked: range, folder: Path) -> dict[int, torch.Tensor]:
    """Of the asked blocks' gradients, batch by batch; of the others nothing is asked for."""
    found = {}
    for k, _, captured in backward(Stream(tiny_value()), PARTS, 1, 3, Env(scratch=folder)):
        if k in asked:
            document_P = torch.zeros(max(len(part.rows_P) for part in PARTS), dtype=torch.long)
            found[k] = torch.stack([batch.squares(PATH, document_P[: batch.positions], 1) for batch in captured])
    return found


@pytest.mark.parametrize("asked", [range(1), range(1, 2)])
def test_gradients_do_not_depend_on_who_asked_for_those_behind(asked: range, tmp_path: Path) -> None:
    every, some = squares(range(2), tmp_path), squares(asked, tmp_path)
    assert all(torch.equal(some[k], every[k]) and bool(every[k].any()) for k in asked)


def test_one_batch_is_held_and_scratch_shrinks(tmp_path: Path) -> None:
    files = []
    for k, _, captured in backward(Stream(tiny_value()), PARTS, 1, 3, Env(scratch=tmp_path)):
        last = None
        for batch in captured:
            gc.collect()
            assert last is None or last() is None
            if isinstance(batch, Linears):
                last = weakref.ref(batch.passes[PATH])
            del batch
        if k != OUTSIDE:
            files.append(len(list(tmp_path.rglob("*.safetensors"))))
    assert files == [4 * len(PARTS), 3 * len(PARTS), 2 * len(PARTS)]  # of what is left, and two kinds at the end
    assert not list(tmp_path.iterdir())


def test_a_pass_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    started = backward(Stream(tiny_value()), PARTS, 1, 3, Env(scratch=tmp_path))
    next(next(started)[2])
    assert list(tmp_path.iterdir())
    started.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())

"""What a packed model computes on tokens, loaded whole or one part at a time: the same modules on the same batches.

N windows, S positions, D hidden size, P predicted positions, V vocabulary.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schemas.errors import InputError
from steps.model.positions import Batch, batches
from steps.step import Env, Value
from steps.verify.cut import Packed, open_cuttable
from steps.verify.load_packed import different_weights, in_float32, load
from steps.verify.part import AROUND, Part

ENDS = Part(None)


@dataclass(frozen=True)
class Predictions:
    """Final-normed hidden_PD fp32 at the predicted positions, and the packed head, hidden [..., D] -> logits [..., V].

    `different` are the loaded weights that are not what was packed; `dtype` is that of the loaded weights.
    """

    hidden_PD: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor]
    different: list[str]
    dtype: str


@torch.no_grad()
def of_whole(loaded: Any, tokens: Value, batch: int, env: Env, different: list[str]) -> Predictions:
    """Of a model that `load` gave, which is widened in place to fp32."""
    dtype, widened = dtype_name(loaded), in_float32(loaded)
    hidden_PD = torch.cat([_whole_hidden(widened, part, env.device) for part in batches(tokens, batch)])
    return Predictions(hidden_PD, widened.lm_head, different, dtype)


def _whole_hidden(loaded: Any, part: Batch, device: str) -> torch.Tensor:
    """Right padding is harmless under causal attention."""
    return part.pick(loaded.model(input_ids=part.ids_NS.long().to(device), use_cache=False).last_hidden_state)


@torch.no_grad()
def by_blocks(
    folder: Path, model: Value, tokens: Value, batch: int, env: Env, selection: Value | None = None
) -> Predictions:
    """The same of a packed folder with one part in memory at a time, each loaded as a model of its own by the loader
    that would load it whole. Holds one block, or the ends, and one hidden_NSD.

    Without a `selection` no weights are compared. InputError when parts come out in different dtypes.
    """
    parts = _Parts(open_cuttable(folder), env, model, selection)
    blocks = int(model.meta["config"]["num_hidden_layers"])
    windows = list(batches(tokens, batch))
    hidden = _embedded(parts, windows, env.device)
    for k in range(blocks):
        _advance(parts, k, hidden, windows if k == blocks - 1 else None, env.device)
        env.progress(k + 1, blocks, "blocks")
    head = _head(parts)
    return Predictions(torch.cat(hidden), lambda rows: head(rows.to(env.device)), parts.ordered(), parts.dtype)


def _embedded(parts: _Parts, windows: list[Batch], device: str) -> list[torch.Tensor]:
    """hidden_NSD of every batch of windows."""
    ends = parts.load(ENDS)
    parts.compare(ENDS, ends)
    ends.lm_head = nn.Identity()  # a head of its own need not be widened here
    table = in_float32(ends).model.embed_tokens
    return [table(part.ids_NS.long().to(device)).cpu() for part in windows]


def _advance(parts: _Parts, k: int, hidden: list[torch.Tensor], last: list[Batch] | None, device: str) -> None:
    """Every batch of windows through block k, in place; behind the `last` one normed and picked: hidden_PD."""
    one = parts.load(Part(k))
    parts.compare(Part(k), one)
    if last is None:
        one.model.norm = nn.Identity()
    one = in_float32(one)
    for n, hidden_NSD in enumerate(hidden):
        out_NSD = one.model(inputs_embeds=hidden_NSD.to(device), use_cache=False).last_hidden_state
        hidden[n] = (out_NSD if last is None else last[n].pick(out_NSD)).cpu()


def _head(parts: _Parts) -> nn.Module:
    ends = parts.load(ENDS)
    ends.model.embed_tokens = nn.Identity()
    head: nn.Module = in_float32(ends).lm_head
    return head


@dataclass
class _Parts:
    """Loads one part after another, and gathers what there is to say about their weights."""

    packed: Packed
    env: Env
    model: Value
    selection: Value | None
    different: set[str] = field(default_factory=set)
    dtype: str = ""

    def load(self, part: Part) -> Any:
        """The part as its loader gives it, from a folder that is gone once it is loaded."""
        gc.collect()  # models refer to themselves: the part before this one still lies about
        folder = self.env.scratch / part.title
        folder.mkdir()
        try:
            self.packed.cut(part, folder)
            one = load(folder, self.env.device)
        finally:
            shutil.rmtree(folder)
        self._check_dtype(dtype_name(one))
        return one

    def compare(self, part: Part, one: Any) -> None:
        """Note the weights of a part that are not what was packed."""
        if self.selection is not None:
            names = part.names(self.model.meta["dtypes"])
            self.different |= set(different_weights(one, self.model, self.selection, names, AROUND))

    def ordered(self) -> list[str]:
        """Different weights in the model's order, as a model that is loaded whole has them."""
        known = [name for name in self.model.meta["dtypes"] if name in self.different]
        return known + sorted(self.different.difference(known))

    def _check_dtype(self, found: str) -> None:
        if self.dtype not in ("", found):
            raise InputError(
                "parts of the packed model load in different dtypes",
                where="the packed folder's config.json",
                got=f"{self.dtype} and {found}",
                fix="say `dtype` in the model's config.json, or `load: whole`",
            )
        self.dtype = found


def dtype_name(loaded: Any) -> str:
    """`bfloat16` and so on."""
    return str(loaded.dtype).removeprefix("torch.")

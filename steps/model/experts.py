"""A mixture's experts as linears of their own, named as in the checkpoint.

transformers 5 holds the experts of a block in two tensors (`gate_up_proj`, `down_proj`) and joins them on loading. Here
they stay apart, so that a hook, a swap or a gradient finds one expert's matrix under its own name.

T tokens, R tokens routed to one expert, K experts per token, E experts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from schemas.mixture import Mixture

UP, DOWN = ("up_proj", "w3"), ("down_proj", "w2")


class Expert(nn.Module):
    """down(act(gate(x)) * up(x)), under the checkpoint's names for the three."""

    def __init__(self, names: tuple[str, str, str], hidden: int, inner: int, activation: nn.Module) -> None:
        super().__init__()
        shapes = ((hidden, inner), (hidden, inner), (inner, hidden))
        for name, (inputs, outputs) in zip(names, shapes, strict=True):
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))
        self.names, self.activation = names, activation

    def forward(self, x_RD: torch.Tensor) -> torch.Tensor:
        """y_RD."""
        gate, up, down = (self.get_submodule(name) for name in self.names)
        y_RD: torch.Tensor = down(self.activation(gate(x_RD)) * up(x_RD))
        return y_RD


class Experts(nn.Module):
    """The experts of a block, `0`, `1`, ...; what transformers' own fused module computes, expert by expert.

    While an expert runs, `tokens_R` says which rows of the block's tokens it was given.
    """

    def __init__(self, found: Mixture, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        for number in range(found.experts):
            self.add_module(str(number), Expert(found.names, hidden, found.inner, activation))
        self.count = found.experts
        self.tokens_R = torch.empty(0, dtype=torch.long)

    def forward(self, hidden_TD: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """sum over a token's experts of weight times expert; experts in order, so that sums have one order."""
        out_TD = torch.zeros_like(hidden_TD)
        for number in torch.unique(index_TK).tolist():
            tokens_R, chosen_R = torch.where(index_TK == number)
            self.tokens_R = tokens_R
            y_RD = self.get_submodule(str(number))(hidden_TD[tokens_R])
            weighted_RD = y_RD * weight_TK[tokens_R, chosen_R, None]
            out_TD = out_TD.index_add(0, tokens_R, weighted_RD.to(out_TD.dtype))
        return out_TD


def unfuse(block: Any, found: Mixture) -> None:
    """Give a block of transformers its experts one by one, under the names of the checkpoint; parameters stay unset."""
    fused = block.mlp.experts
    block.mlp.experts = Experts(found, fused.hidden_dim, fused.act_fn)
    if found.path != "mlp":  # the checkpoint's name for it; the block's own code goes on saying `mlp`
        module = block.mlp
        del block.mlp
        block.add_module(found.path, module)
        object.__setattr__(block, "mlp", module)


def module_name(name: str) -> str:
    """The name in transformers' model of what a checkpoint calls so, experts apart."""
    return name.replace(".block_sparse_moe.", ".mlp.")


def loaded_name(name: str) -> str:
    """The parameter of transformers' own model that holds a checkpoint's parameter: of experts, all of a block."""
    path, inside, rest = module_name(name).partition(".experts.")
    return f"{path}.experts.{'down_proj' if _matrix(rest) in DOWN else 'gate_up_proj'}" if inside else path


def loaded_part(name: str, loaded: torch.Tensor) -> torch.Tensor:
    """A checkpoint's parameter within the loaded parameter of `loaded_name`."""
    rest = name.partition(".experts.")[2]
    if not rest or loaded.ndim != 3:
        return loaded
    matrix, expert_OI = _matrix(rest), loaded[int(rest.partition(".")[0])]
    half = len(expert_OI) // 2
    return expert_OI if matrix in DOWN else expert_OI[half:] if matrix in UP else expert_OI[:half]


def joined(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's dense tensors as transformers' model has them, the experts of a block in one."""
    experts: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        path, inside, rest = module_name(name).partition(".experts.")
        if inside:
            number, matrix, _ = rest.split(".")
            experts.setdefault(path, {}).setdefault(int(number), {})[matrix] = tensor
        else:
            found[path] = tensor
    for path, each in experts.items():
        parts = [_fused(each[number]) for number in sorted(each)]
        found[f"{path}.experts.gate_up_proj"] = torch.stack([gate_up for gate_up, _ in parts])
        found[f"{path}.experts.down_proj"] = torch.stack([down for _, down in parts])
    return found


def _fused(expert: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(gate above up, down)."""
    up, down = (next(expert[name] for name in names if name in expert) for names in (UP, DOWN))
    (gate,) = (tensor for name, tensor in expert.items() if name not in UP + DOWN)
    return torch.cat([gate, up]), down


def _matrix(rest: str) -> str:
    """`3.w1.weight` -> `w1`."""
    return rest.split(".")[1] if rest else ""

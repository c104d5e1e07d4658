"""A training's state on disk, so that a killed run goes on where it was and ends in the same bytes.

One safetensors file, replaced whole: variables, the optimizer's moments, the best tensors so far, and the facts as JSON
in its metadata. Where there is no folder for it, nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Rows = list[dict[str, float]]


@dataclass
class Progress:
    """How far a training is. `checks` are the held-out windows' rows at each point of `curve`, the input's first.

    `best` holds the tensors of the check with the least loss; none while that is the input.
    """

    step: int = 0
    seen: int = 0
    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    checks: list[Rows] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def held_out(self) -> list[float]:
        """Mean loss on the held-out windows at each check, the input's first."""
        return [check["held_out"] for check in self.curve]


def save(path: Path, progress: Progress, variables: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Replace the file at `path`."""
    facts = {name: value for name, value in vars(progress).items() if name != "best"}
    tensors = {f"variable.{i}": v.detach().cpu() for i, v in enumerate(variables)}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best.items()}
    for i, variable in enumerate(variables):
        for name, value in optimizer.state.get(variable, {}).items():
            tensors[f"moment.{i}.{name}"] = value.detach().cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    written = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(written, beside, {"progress": json.dumps(facts), "sha256": digest(written)})
    beside.replace(path)


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names and contents: a file of this format says nothing of what was changed within it."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} ".encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def load(
    path: Path, variables: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer, note: Callable[[str], None]
) -> Progress:
    """What `save` left, put into `variables` and `optimizer`; a fresh Progress when there is no whole file.

    All that is lost with a damaged one is time, which `note` is told: the result is the same.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            facts = json.loads(file.metadata()["progress"])
            if file.metadata()["sha256"] != digest(tensors):
                raise ValueError("not the content that was written")
        _check(tensors, facts, variables)
    except FileNotFoundError:
        return Progress()
    except Exception as error:  # cut short, or not ours
        note(f"training began anew: the state it was to go on from is damaged ({path.name}: {error})")
        return Progress()
    return _restored(tensors, facts, variables, optimizer)


def _check(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any], variables: Sequence[torch.Tensor]) -> None:
    """ValueError for a file that is whole but of another training."""
    shapes = [tensors[f"variable.{i}"].shape if f"variable.{i}" in tensors else None for i in range(len(variables))]
    if shapes != [variable.shape for variable in variables]:
        raise ValueError("other variables")
    if set(facts) != {each.name for each in fields(Progress)} - {"best"}:
        raise ValueError("other facts")


@torch.no_grad()
def _restored(
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    variables: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> Progress:
    for i, variable in enumerate(variables):
        variable.copy_(tensors[f"variable.{i}"])
        state = {n.split(".", 2)[2]: t for n, t in tensors.items() if n.startswith(f"moment.{i}.")}
        if state:
            # Adam's step count stays on the CPU unless the optimizer is fused; the moments lie beside the variable.
            optimizer.state[variable] = {n: t.to(variable.device) for n, t in state.items()}
    best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
    return Progress(**facts, best=best)

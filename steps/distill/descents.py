"""Descents on disk, one file for each matrix, so that a killed recoding computes only the one in flight again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from steps.distill.descend import Descent, Gain
from steps.distill.resume import digest
from steps.step import Env


def once(env: Env, member: str, make: Callable[[], Descent | None]) -> Descent | None:
    """What an earlier call of the same item left for this matrix, or else `make()`, kept for a later one.

    A damaged file costs time, which the environment is told, and changes nothing.
    """
    path = None if env.resume is None else env.resume / f"{member}.safetensors"
    if path is not None and path.exists():
        try:
            return _load(path, env.device)
        except Exception as error:  # cut short, or not ours
            env.note(f"codes of {member} were chosen anew: what was kept of them is damaged ({error})")
    made = make()
    if path is not None and made is not None:
        _save(path, made)
    return made


def _load(path: Path, device: str) -> Descent:
    with safe_open(path, "pt") as file:
        gain, level_OGJ = Gain(**json.loads(file.metadata()["gain"])), file.get_tensor("level_OGJ")
        if file.metadata()["sha256"] != digest({"level_OGJ": level_OGJ}):
            raise ValueError("not the content that was written")
        return Descent(level_OGJ.to(device, torch.float32), gain)


def _save(path: Path, made: Descent) -> None:
    """Whole or not at all. Levels are whole numbers, of 8 bits with zero points at most: int16 holds them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    written = {"level_OGJ": made.level_OGJ.to("cpu", torch.int16).contiguous()}
    save_file(written, beside, {"gain": json.dumps(asdict(made.gain)), "sha256": digest(written)})
    beside.replace(path)

"""Measure a packed folder against its original, through the engine that will run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from schemas.calibrate import Reference, Tokenize
from steps.calibrate.reference import run as reference_run
from steps.calibrate.tokenize import run as tokenize_run
from steps.model.structure import max_length
from steps.pack.read import PackedFolder
from steps.step import Env, Value
from steps.verify.bootstrap import draw, measured
from steps.verify.load_packed import different_weights, in_float32, load
from steps.verify.run import device_name, measure
from steps.verify.speed import measure_speed

RESAMPLES = 2000


def tokens_of(model: Value, text: Value, length: int, windows: int, env: Env) -> Value:
    """Document windows of a text, as the verify step's tokens are."""
    spec = Tokenize(step="tokenize", layout="document", length=length, windows=windows)
    return tokenize_run(spec, {"model": model, "text": text}, env)["tokens"]


@torch.no_grad()
def measure_folder(
    folder: Path,
    model: Value,
    tokens: Value,
    env: Env,
    batch: int = 16,
    reference: Value | None = None,
    selection: Value | None = None,
) -> dict[str, Any]:
    """KL, perplexity and top-1 agreement of the folder with 95 % intervals over documents, and its speed; JSON.

    `reference` holds the original's final hidden states of these tokens, and `selection` what was packed, when they
    are at hand; `different` are the loaded weights that are not the selection's.
    """
    loaded = load(folder, env.device)
    inputs: dict[str, Value] = {"model": model, "tokens": tokens}
    if reference is None:
        inputs |= reference_run(Reference(step="reference", batch=batch), inputs, env)
    else:
        inputs["reference"] = reference
    speed = measure_speed(loaded, _prompt(tokens), env.device, max_length(model.meta["config"]))
    different = different_weights(loaded, model, selection) if selection is not None else []
    rows: Mapping[str, Any] = measure(in_float32(loaded), inputs, batch, env, different)
    count_BD = draw(len(rows["documents"]), RESAMPLES, 0)
    size = sum(file.size for file in PackedFolder(folder).files.values())
    found = {
        "mixed": measured(rows["documents"], size, count_BD),
        "original": measured(rows["original"], 0, count_BD),
    }
    return {
        **{name: value.model_dump(mode="json") for name, value in found.items()},
        "speed": speed.model_dump(mode="json"),
        "different": different,
        "device": device_name(env.device),
        "tokens": sum(int(row["tokens"]) for row in rows["documents"]),
        "documents": len(rows["documents"]),
    }


def _prompt(tokens: Value) -> torch.Tensor:
    """The valid tokens of the longest window."""
    length_N = tokens.tensors["lengths_N"]
    longest = int(length_N.argmax())
    return tokens.tensors["ids_NS"][longest, : int(length_N[longest])]

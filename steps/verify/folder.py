"""Measure a packed folder against its original, through the engine that will run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from schemas.calibrate import Reference, Tokenize
from schemas.errors import InputError
from schemas.report import Speed
from schemas.verify import WHOLE_BYTES, Loading
from steps.calibrate.reference import run as reference_run
from steps.calibrate.tokenize import run as tokenize_run
from steps.model.positions import batches, predicted_positions
from steps.model.stream import Stream
from steps.pack.gguf import FILE
from steps.step import Env, Value
from steps.verify.bootstrap import draw, measured
from steps.verify.integrity import open_packed
from steps.verify.llama import logits
from steps.verify.loading import resolve
from steps.verify.metrics import Comparison, compare_chunk, documents_meta, join
from steps.verify.predictions import by_blocks
from steps.verify.run import device_name, measure, predict_whole

RESAMPLES = 2000
VerifyEngine = Literal["transformers", "llama.cpp"]


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
    engine: VerifyEngine = "transformers",
    load: Loading = "auto",
) -> dict[str, Any]:
    """KL, perplexity and top-1 agreement of the folder with 95 % intervals over documents, and its speed; JSON.

    `reference` holds the original's final hidden states of these tokens, and `selection` what was packed, when they
    are at hand; `different` are the loaded weights that are not the selection's. llama.cpp is measured by its logits
    alone: neither weights nor speed. `load` is as in schemas/verify.py.
    """
    inputs: dict[str, Value] = {"model": model, "tokens": tokens}
    if reference is None:
        inputs |= reference_run(Reference(step="reference", batch=batch), inputs, env)
    else:
        inputs["reference"] = reference
    if engine == "llama.cpp":
        return _facts(folder, llama_rows(folder, inputs, batch, env), env, speed=None, different=None, loaded="whole")
    if selection is not None:
        inputs["selection"] = selection
    speed: Speed | None = None
    how = resolve(load, WHOLE_BYTES, model.meta["shapes"])
    if how == "whole":
        predictions, speed = predict_whole(folder, inputs, batch, env)
    else:
        predictions = by_blocks(folder, model, tokens, batch, env, selection)
    rows: Mapping[str, Any] = measure(predictions, inputs, env)
    told = speed and speed.model_dump(mode="json")
    return _facts(folder, rows, env, speed=told, different=predictions.different, loaded=how)


def _facts(folder: Path, rows: Mapping[str, Any], env: Env, **others: Any) -> dict[str, Any]:
    """Per-document rows as means with intervals."""
    count_BD = draw(len(rows["documents"]), RESAMPLES, 0)
    size = sum(file.size for file in open_packed(folder).files.values())
    return {
        "mixed": measured(rows["documents"], size, count_BD).model_dump(mode="json"),
        "original": measured(rows["original"], 0, count_BD).model_dump(mode="json"),
        **others,
        "device": device_name(env.device),
        "tokens": sum(int(row["tokens"]) for row in rows["documents"]),
        "documents": len(rows["documents"]),
    }


@torch.no_grad()
def llama_rows(folder: Path, inputs: Mapping[str, Value], batch: int, env: Env) -> Mapping[str, Any]:
    """Per-document rows of the folder's GGUF run by llama.cpp, and of the original; InputError without either."""
    if not (folder / FILE).is_file():
        raise InputError("llama.cpp reads GGUF", where=str(folder), wanted=FILE, fix="build with `pack: gguf`")
    positions, stream = predicted_positions(inputs["tokens"]), Stream(inputs["model"], env.device)
    original_PD = inputs["reference"].tensors["hidden_TD"][positions.valid_P]
    parts: list[Comparison] = []
    start = 0
    for part in batches(inputs["tokens"], batch):
        logits_PV = part.pick(logits(folder / FILE, part.ids_NS)).to(env.device)
        rows = slice(start, start := start + len(logits_PV))
        original_PV = stream.logits(original_PD[rows].to(env.device))
        parts.append(compare_chunk(original_PV, logits_PV, positions.label_P[rows]))
    return documents_meta(join(parts), positions)

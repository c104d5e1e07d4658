"""Measure a packed folder against its original, through the engine that will run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from schemas.calibrate import Reference, Tokenize
from schemas.errors import InputError
from steps.calibrate.reference import run as reference_run
from steps.calibrate.tokenize import run as tokenize_run
from steps.model.positions import batches, predicted_positions
from steps.model.stream import Stream
from steps.model.structure import max_length
from steps.pack.gguf import FILE
from steps.step import Env, Value
from steps.verify.bootstrap import draw, measured
from steps.verify.integrity import open_packed
from steps.verify.llama import logits
from steps.verify.load_packed import different_weights, in_float32, load
from steps.verify.metrics import Comparison, compare_chunk, documents_meta, join
from steps.verify.run import device_name, measure
from steps.verify.speed import measure_speed, original_peak

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
) -> dict[str, Any]:
    """KL, perplexity and top-1 agreement of the folder with 95 % intervals over documents, and its speed; JSON.

    `reference` holds the original's final hidden states of these tokens, and `selection` what was packed, when they
    are at hand; `different` are the loaded weights that are not the selection's. llama.cpp is measured by its logits
    alone: neither weights nor speed.
    """
    inputs: dict[str, Value] = {"model": model, "tokens": tokens}
    if reference is None:
        inputs |= reference_run(Reference(step="reference", batch=batch), inputs, env)
    else:
        inputs["reference"] = reference
    if engine == "llama.cpp":
        return _facts(folder, llama_rows(folder, inputs, batch, env), env, speed=None, different=None)
    prompt_S, limit = _prompt(tokens), max_length(model.meta["config"])
    original_bytes = original_peak(model, prompt_S, env.device, limit)
    loaded = load(folder, env.device)
    speed = measure_speed(loaded, prompt_S, env.device, limit, original_bytes)
    different = different_weights(loaded, model, selection) if selection is not None else []
    rows: Mapping[str, Any] = measure(in_float32(loaded), inputs, batch, env, different)
    return _facts(folder, rows, env, speed=speed.model_dump(mode="json"), different=different)


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


def _prompt(tokens: Value) -> torch.Tensor:
    """The valid tokens of the longest window."""
    length_N = tokens.tensors["lengths_N"]
    longest = int(length_N.argmax())
    return tokens.tensors["ids_NS"][longest, : int(length_N[longest])]

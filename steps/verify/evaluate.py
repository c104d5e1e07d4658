"""Measure a selection, dequantized in memory, against the original, one block resident at a time.

D hidden size, T valid positions, P predicted positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.verify import Evaluate
from steps.calibrate.reference import run as reference_run
from steps.model.overlay import overlay
from steps.model.positions import predicted_positions
from steps.model.stream import Stream
from steps.step import Env, Output, Value
from steps.verify.metrics import compare, documents_meta


@torch.no_grad()
def run(spec: Evaluate, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`evaluation`: per-document tokens, mean KL(original || selection), nll (nats) and top-1 agreement, and the
    original's own nll; everything per predicted position. Transformer in fp32, sums over positions in fp64.

    `reference` holds the original's final-normed hidden states at the valid positions of the same tokens; the
    selection's are computed exactly as those were, and go through its own head.
    """
    tokens, original_TD = inputs["tokens"], inputs["reference"].tensors["hidden_TD"]
    changed = overlay(inputs["model"], inputs["selection"])
    found = reference_run(Reference(step="reference", batch=spec.batch), {"model": changed, "tokens": tokens}, env)
    student_TD = found["reference"].tensors["hidden_TD"]
    if original_TD.shape != student_TD.shape:
        raise InputError(
            "the reference is of other tokens than those evaluated",
            got=list(original_TD.shape),
            wanted=list(student_TD.shape),
            fix="feed the evaluate node and its reference node from the same tokenize node",
        )
    original, student = Stream(inputs["model"], env.device), Stream(changed, env.device)
    positions = predicted_positions(tokens)
    comparison = compare(
        lambda rows: original.logits(original_TD[positions.valid_P[rows]].to(env.device)),
        lambda rows: student.logits(student_TD[positions.valid_P[rows]].to(env.device)),
        positions,
        original.config.vocab_size,
    )
    return {"evaluation": Output(meta=documents_meta(comparison, positions))}

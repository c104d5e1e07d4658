"""Load the packed folder, compare every weight, measure it on held-out text, and judge.

S positions, D hidden size (in `count_BD`: documents), P predicted positions, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError
from schemas.report import Speed
from schemas.verify import Verify
from steps.model.positions import predicted_positions
from steps.model.stream import Stream
from steps.model.structure import max_length
from steps.step import Env, Output, Value
from steps.verify.bootstrap import Rows, draw, measured
from steps.verify.by_position import position_rows
from steps.verify.contestants import against_uniform, contestants, contrasts_of, dumped, has_uniform, notes
from steps.verify.experts import expert_coverage
from steps.verify.gates import Facts, judge, largest_damping
from steps.verify.load_packed import different_weights, folder_of, load
from steps.verify.loading import asked
from steps.verify.metrics import compare, documents_meta
from steps.verify.predictions import Predictions, by_blocks, of_whole
from steps.verify.speed import measure_speed, original_peak


def run(spec: Verify, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`verdict`: metrics, contrasts, gates and speed of the packed model; names are those of schemas/report.py.

    The packed model is measured with the weights its loader gives (rounded to the config's dtype) and arithmetic in
    fp32, like the reference; speed is measured before widening, in the dtype it was loaded in. A model that is loaded
    block by block gives the same numbers, but for its speed, which is then None.
    """
    model = inputs["model"]
    folder = folder_of(inputs["packed"].files, env.scratch / "packed")
    how = asked(spec, model.meta["shapes"])
    speed: Speed | None = None
    if how == "whole":
        predictions, speed = predict_whole(folder, inputs, spec.batch, env)
    else:
        predictions = by_blocks(folder, model, inputs["tokens"], spec.batch, env, inputs["selection"])
    rows, different = measure(predictions, inputs, env), predictions.different
    meta = {
        **verdict(spec, inputs, rows, different),
        "speed": speed and speed.model_dump(mode="json"),
        "weights": {"compared": len(model.meta["dtypes"]), "different": different},
        "device": device_name(env.device),
        "dtype": predictions.dtype,
        "loaded": how,
    }
    return {"verdict": Output(meta=meta)}


def predict_whole(folder: Path, inputs: Mapping[str, Value], batch: int, env: Env) -> tuple[Predictions, Speed]:
    """Of a folder loaded whole; weights are compared with the `selection` when there is one."""
    model, tokens = inputs["model"], inputs["tokens"]
    prompt_S, limit = _prompt(tokens), max_length(model.meta["config"])
    original_bytes = original_peak(model, prompt_S, env.device, limit)
    loaded = load(folder, env.device)
    different = different_weights(loaded, model, inputs["selection"]) if "selection" in inputs else []
    speed = measure_speed(loaded, prompt_S, env.device, limit, original_bytes)
    return of_whole(loaded, tokens, batch, env, different), speed


def verdict(
    spec: Verify, inputs: Mapping[str, Value], rows: Mapping[str, Rows], different: list[str]
) -> dict[str, Any]:
    """Metrics, contrasts and gates from the rows of the packed model and of the original; a pure function."""
    selection, found = inputs["selection"], contestants(inputs, rows)
    count_BD = draw(len(found["mixed"].rows), spec.bootstrap, spec.seed)
    metrics = {name: measured(c.rows, c.size, count_BD) for name, c in found.items()}
    contrasts = contrasts_of(found, selection, count_BD)
    facts = Facts(
        kl=metrics["mixed"].kl.value,
        actual_bytes=found["mixed"].size,
        predicted_bytes=inputs["packed"].meta["bytes"]["predicted"],
        different_weights=different,
        damping=largest_damping(selection.children),
        against_uniform=against_uniform(contrasts, selection),
        has_uniform=has_uniform(inputs),
        experts=expert_coverage(selection.children),
    )
    gates = judge(spec.gates, facts)
    return {
        "metrics": dumped(metrics),
        "contrasts": [c.model_dump(mode="json") for c in contrasts.values()],
        "experts": facts.experts and facts.experts.model_dump(mode="json"),
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "passed": all(gate.passed for gate in gates),
        "documents": list(found["mixed"].rows),
        "positions": _positions(inputs, rows, count_BD),
        "notes": notes(found, facts.has_uniform, different),
    }


def _positions(inputs: Mapping[str, Value], rows: Mapping[str, Rows], count_BD: torch.Tensor) -> list[dict[str, Any]]:
    """KL by position of the packed model and, where it was measured, of the uniform baseline."""
    uniform = inputs["uniform"].meta.get("positions", ()) if "uniform" in inputs and has_uniform(inputs) else ()
    found = position_rows(rows.get("positions", ()), uniform, count_BD)
    return [row.model_dump(mode="json") for row in found]


@torch.no_grad()
def measure(predictions: Predictions, inputs: Mapping[str, Value], env: Env) -> Mapping[str, Rows]:
    """Per-document rows of the packed model (`documents`) and of the original (`original`), and KL by position.

    InputError when its predictions are not finite, naming the weights that came out different.
    """
    positions = predicted_positions(inputs["tokens"])
    original = Stream(inputs["model"], env.device)
    original_PD = inputs["reference"].tensors["hidden_TD"][positions.valid_P]
    comparison = compare(
        lambda rows: original.logits(original_PD[rows].to(env.device)),
        lambda rows: predictions.head(predictions.hidden_PD[rows]),
        positions,
        original.config.vocab_size,
    )
    if not bool(torch.isfinite(comparison.kl_P).all() and torch.isfinite(comparison.nll_P).all()):
        raise InputError(
            "the packed model's predictions are not finite",
            where=", ".join(predictions.different[:5]) or "no weight differs from what was packed",
            fix="rebuild the packed folder; if that does not help, look for overflow in the model's own dtype",
        )
    return documents_meta(comparison, positions)


def device_name(device: str) -> str:
    """`cpu`, or the GPU's index and name."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def _prompt(tokens: Value) -> torch.Tensor:
    """The valid tokens of the longest window."""
    length_N = tokens.tensors["lengths_N"]
    longest = int(length_N.argmax())
    return tokens.tensors["ids_NS"][longest, : int(length_N[longest])]

"""A tied embedding quantized for its use as the head, as the embedding, and for both: the KL of each on the demo model.

    python tests/benchmarks/tied.py [--windows 32] [--score-windows 8]

Prints, for three formats, KL(original || with this matrix) in nats per token for Hessians H + share * mean(diag H) * I,
with H of final-normed hidden states on calibration text; `inf` is I alone. `TIED_SHARE` in
steps/quantize/shared_inputs.py was chosen by this table.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch

from pipelines.sources import open_source_model, open_source_text
from schemas.calibrate import ModelSource, Reference, TextSource, Tokenize
from schemas.format import read_format
from schemas.quantize import ClipSearch, Feedback, QuantizeUnit, Rounding
from schemas.sensitivity import KLProbe
from steps.calibrate import reference, tokenize
from steps.model.structure import embedding_unit
from steps.quantize.unit import run as quantize
from steps.sensitivity import kl_probe
from steps.step import Env, Output, Value

SHARES = (0.0, 0.1, 1.0, 10.0, math.inf)
FORMATS = ("int3-g64", "int4-g64", "int8-g128")


def tokens(model: Value, text: Value, layout: str, windows: int) -> Output:
    """Windows of the calibration text."""
    spec = Tokenize.model_validate({"step": "tokenize", "layout": layout, "windows": windows})
    env = Env(scratch=Path(tempfile.mkdtemp()))
    return tokenize.run(spec, {"text": text, "model": model}, env)["tokens"]


def states(model: Value, windows: Output) -> Output:
    """Final-normed hidden states of the original."""
    return reference.run(Reference(step="reference"), {"model": model, "tokens": windows}, Env())["reference"]


def shared(H_II: torch.Tensor, share: float) -> torch.Tensor:
    """The Hessian of both uses."""
    eye_II = torch.eye(len(H_II))
    return eye_II if math.isinf(share) else H_II + share * H_II.diagonal().mean() * eye_II


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--score-windows", type=int, default=8)
    options = parser.parse_args()
    cache = Path(tempfile.mkdtemp())
    model = open_source_model(ModelSource(step="model", source="builtin:demo"), cache)
    text = open_source_text(TextSource(step="text", source="builtin:calibrate"), cache)
    hidden_TD = states(model, tokens(model, text, "stream", options.windows)).tensors["hidden_TD"].double()
    H_II = (2 * hidden_TD.T @ hidden_TD / len(hidden_TD)).float()
    scoring = tokens(model, text, "document", options.score_windows)
    inputs: dict[str, Value] = {"model": model, "tokens": scoring, "reference": states(model, scoring)}
    unit = embedding_unit(model.meta["config"], model.meta["shapes"]).model_copy(update={"use": "linear"})
    view, env = Output({**model.meta, "unit": unit.model_dump()}, model.tensors), Env()
    print("format    ", *(f"share {share:<6g}" for share in SHARES))
    for name in FORMATS:
        rounding = Rounding(fit=ClipSearch(kind="clip"), solver=Feedback(kind="feedback"))
        spec, scores = QuantizeUnit(format=read_format(name), rounding=rounding), list[float]()
        for share in SHARES:
            statistics = Output(tensors={"lm_head.hessian": shared(H_II, share)})
            item = quantize(spec, {"model": view, "statistics": statistics}, Env())["candidates"]
            found = kl_probe.run(KLProbe(step="kl_probe"), {**inputs, "candidates": item}, env)["scores"]
            scores.append(found.meta["score"])
        print(f"{name:10}", *(f"{score:<12.3g}" for score in scores))


if __name__ == "__main__":
    main()

"""Measure the packed folder on the text of one domain.

B resamples, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from schemas.verify import Measure
from steps.step import Env, Output, Value
from steps.verify.bootstrap import Rows, draw, interval, means, measured
from steps.verify.contestants import has_uniform
from steps.verify.load_packed import folder_of, load
from steps.verify.loading import asked
from steps.verify.predictions import by_blocks, of_whole
from steps.verify.run import measure


def run(spec: Measure, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`evaluation` of the packed file as verify measures it, and `domain`: its row of the report, but for the name.

    Whether the weights are what was packed is verify's to say. `plan` tells whether there is a uniform baseline at all.
    """
    folder = folder_of(inputs["packed"].files, env.scratch / "packed")
    if asked(spec, inputs["model"].meta["shapes"]) == "whole":
        predictions = of_whole(load(folder, env.device), inputs["tokens"], spec.batch, env, [])
    else:
        predictions = by_blocks(folder, inputs["model"], inputs["tokens"], spec.batch, env)
    rows = measure(predictions, inputs, env)
    count_BD = draw(len(rows["documents"]), spec.bootstrap, spec.seed)
    uniform = inputs["uniform"].meta["documents"] if "uniform" in inputs and has_uniform(inputs) else None
    return {"evaluation": Output(meta={**rows, "domain": domain(rows, uniform, count_BD)})}


def domain(rows: Mapping[str, Rows], uniform: Rows | None, count_BD: torch.Tensor) -> dict[str, Any]:
    """Fields of a DomainRow, as JSON."""
    of_packed, original_ppl = measured(rows["documents"], 0, count_BD), means(count_BD, rows["original"], "nll").exp()
    intervals = {
        "kl": of_packed.kl,
        "ppl": of_packed.ppl,
        "top1": of_packed.top1,
        "original_ppl": interval(original_ppl),
        **({} if uniform is None else {"uniform": interval(means(count_BD, uniform, "kl"))}),
    }
    return {
        "documents": len(rows["documents"]),
        "tokens": sum(int(row["tokens"]) for row in rows["documents"]),
        **{name: each.model_dump(mode="json") for name, each in intervals.items()},
    }

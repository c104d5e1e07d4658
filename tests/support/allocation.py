"""Allocation problems: realistic and hand-made, and made-up inputs of the allocate step for a small model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from schemas.allocate import Allocate
from schemas.artifact import item_name
from schemas.format import read_format
from steps.allocate.problem import Choice, Problem, canonical, violations
from steps.allocate.run import run
from steps.model.structure import embedding_unit, units
from steps.pack.sizes import file_bytes
from steps.step import Env, Output

FORMATS = ("int2-g32", "int3-g32", "int3-g64", "int4-g64", "int4-g32", "int6-g64", "int8-row")
UNIT = "layers.0.mlp.down"


def problem(bytes_UC: Any, score_UC: Any, limit: int | None = None, **changes: Any) -> Problem:
    """A problem from plain lists; None is a format that is not allowed. Formats are named f0, f1, ..., units u000."""
    units_, formats = len(bytes_UC), len(bytes_UC[0])
    fields: dict[str, Any] = {
        "units": tuple(f"u{i:05d}" for i in range(units_)),
        "formats": tuple(f"f{i}" for i in range(formats)),
        "bytes_UC": np.array([[b or 0 for b in row] for row in bytes_UC], dtype=np.int64),
        "score_UC": np.array([[s or 0.0 for s in row] for row in score_UC], dtype=np.float64),
        "allowed_UC": np.array([[b is not None for b in row] for row in bytes_UC]),
        "weights_U": np.full(units_, 1000, dtype=np.int64),
        "limit_bytes": limit,
    }
    return canonical(Problem(**(fields | changes)))


def realistic(n_units: int, formats: int, seed: int = 0, bits: float = 3.5, shapes: str = "few") -> Problem:
    """Scores that fall like 4^-bits with noise and sensitivities over orders of magnitude.

    `few` shapes repeat as in a decoder, `many` are all different with noisy bytes.
    """
    rng = np.random.default_rng(seed)
    bits_C = np.linspace(2.25, 8.25, formats)
    four = np.array([4096 * 6144, 4096 * 4096, 4096 * 28672, 14336 * 4096])
    weights_U = np.resize(four, n_units) if shapes == "few" else rng.integers(10**5, 10**8, n_units)
    spread_UC = 0.0 if shapes == "few" else rng.uniform(-0.1, 0.1, (n_units, formats))
    bytes_UC = (weights_U[:, None] * (bits_C + spread_UC) / 8).astype(np.int64)
    noise_UC = np.exp(rng.normal(0, 0.2, (n_units, formats)))
    score_UC = rng.lognormal(0, 1.5, n_units)[:, None] * weights_U[:, None] * 4.0**-bits_C * noise_UC
    limit = int(weights_U.sum() * bits / 8)
    return problem(bytes_UC.tolist(), (score_UC / score_UC.sum()).tolist(), limit, weights_U=weights_U)


def brute_force(given: Problem, value: Callable[[Choice], float]) -> float | None:
    """The least value over every plan within the limits; None when there is none."""
    options = [np.flatnonzero(row) for row in given.allowed_UC]
    plans = (np.array(p, dtype=np.intp) for p in itertools.product(*options))
    return min((value(p) for p in plans if not violations(given, p)), default=None)


def config(blocks: int = 2) -> dict[str, Any]:
    """A small Llama whose rows every group size divides."""
    return {"model_type": "llama", "num_hidden_layers": blocks, "max_position_embeddings": 64, "dtype": "bfloat16"}


def model(blocks: int = 2) -> Output:
    """The model value: shapes and dtypes, no tensors."""
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [97, 128], "model.norm.weight": [128]}
    for k in range(blocks):
        prefix = f"model.layers.{k}."
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": [128, 128] for n in "qo"}
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": [64, 128] for n in "kv"}
        shapes |= {f"{prefix}mlp.{n}_proj.weight": [256, 128] for n in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": [128, 256]}
        shapes |= {f"{prefix}{n}_layernorm.weight": [128] for n in ("input", "post_attention")}
    meta = {"config": config(blocks), "shapes": shapes, "dtypes": {n: "bfloat16" for n in shapes}, "name": "small"}
    return Output(meta=meta)


def step_inputs(
    blocks: int = 2, formats: Sequence[str] = FORMATS, seed: int = 0, documents: int = 12, embedding: str | None = None
) -> dict[str, Output]:
    """Inputs of the allocate step: scores fall with bits, differ by unit, and vary over documents.

    `embedding` is the one format that the embedding is in; without one it is no unit.
    """
    rng, whole = np.random.default_rng(seed), model(blocks)
    offered = [read_format(f) for f in formats]
    weights = rng.integers(20, 200, documents).astype(float)
    candidates, scores = {}, {}
    inside = [(unit, offered) for unit in units(whole.meta["config"], whole.meta["shapes"])]
    ends = (
        [] if embedding is None else [(embedding_unit(config(blocks), whole.meta["shapes"]), [read_format(embedding)])]
    )
    for unit, its_formats in [*inside, *ends]:
        scale = float(rng.lognormal(-2, 1))
        for fmt in its_formats:
            item = item_name(unit.name, fmt.name)
            members = {
                m: {"shape": list(s), "loss": 1.0, "damping": 0.0}
                for m, s in zip(unit.members, unit.shapes, strict=True)
            }
            mean = scale * 4.0 ** -(fmt.bits + (0.3 if fmt.group_size == 32 else 0.0))
            values = mean * rng.lognormal(0, 0.3, documents)
            score = float(values @ weights / weights.sum())
            facts = {"unit": unit.name, "format": fmt.name, "score": score}
            candidates[item] = Output(
                meta={"unit": unit.name, "format": fmt.model_dump(mode="json"), "members": members}
            )
            scores[item] = Output(meta=facts | {"documents": values.tolist(), "weights": weights.tolist()})
    return {"scores": Output(children=scores), "candidates": Output(children=candidates), "model": whole}


def spec(budget: dict[str, Any] | None = None, **fields: Any) -> Allocate:
    whole = {"step": "allocate", "budget": budget or {"bits_per_weight": 3.5}, "bootstrap": 20, **fields}
    return Allocate.model_validate(whole)


def allocated(inputs: dict[str, Output] | None = None, budget: dict[str, Any] | None = None, **fields: Any) -> Any:
    return run(spec(budget, **fields), inputs or step_inputs(), Env())["plan"].meta


def changed(edit: Callable[[str, dict[str, Any]], None], port: str = "scores") -> dict[str, Output]:
    """Step inputs with the meta of every item of a port edited in place."""
    inputs = step_inputs()
    children = {}
    for name, child in inputs[port].children.items():
        meta = json.loads(json.dumps(child.meta))
        edit(name, meta)
        children[name] = Output(meta=meta)
    return inputs | {port: Output(children=children)}


def exact_file(plan: dict[str, str]) -> int:
    meta = model().meta
    linears = {}
    for unit, name in plan.items():
        block, part = unit.split(".", 2)[1:]
        members = {"qkv": "q_proj k_proj v_proj", "o": "o_proj", "gate_up": "gate_proj up_proj", "down": "down_proj"}
        group, short = part.split(".")
        for member in members[short].split():
            linears[f"model.layers.{block}.{group}.{member}"] = read_format(name)
    shapes = {n: tuple(s) for n, s in meta["shapes"].items()}
    return file_bytes("compressed-tensors", meta["config"], shapes, meta["dtypes"], linears)

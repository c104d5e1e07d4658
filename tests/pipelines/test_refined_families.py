"""Whole builds that refine other families of formats: packed, loaded back, equal bit for bit, as large as predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from builds import open_build, run_build, write_text
from ggufs import byte_level
from models import tiny_value, write_model

from pipelines.preflight import check
from schemas.format import Ggml, read_format

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
MIXTURE: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "moe_intermediate_size": 32, "num_hidden_layers": 2}
REFINED: dict[str, Any] = {
    "sensitivity": "fisher",
    "distill": {
        "recode": False,
        "tokens": 2048,
        "batch": 8,
        "held_out": 12,
        "check_every": 4,
        "rates": {"codes": 0.03, "scales": 0.01, "norms": 0.01},
    },
    "gates": {"beats_uniform": False},
}


def with_model(folder: Path, family: str, **sizes: Any) -> Path:
    """A folder whose model is of this family, and its texts."""
    write_model(folder / "model", tiny_value(family, dtype=torch.bfloat16, vocab_size=300, **sizes))
    write_text(folder / "calibrate.jsonl", 24, 1)
    write_text(folder / "evaluate.jsonl", 8, 2)
    return folder


def built(folder: Path, **changes: Any) -> dict[str, Any]:
    """The meta of every output by node, of a build that has passed pre-flight and run."""
    build = open_build(folder, **{**REFINED, **changes})
    check(build)
    outputs = run_build(build).outputs
    load = build.runner.store.artifacts.load
    stored = {node: ports for node, ports in outputs.items() if build.runner.by_id[node].step is not None}
    return {node: dict(load(digest).meta) for node, ports in stored.items() for digest in ports.values()}


def check_refined(metas: dict[str, Any]) -> None:
    """The gates, and that training gave something, on the held-out windows and in the packed file."""
    gates = {row["name"]: row["passed"] for row in metas["verdict"]["gates"]}
    assert gates["weights_match"] and gates["size_as_predicted"]
    facts, measured = metas["distilled"]["distilled"], metas["verdict"]["metrics"]
    assert facts["step_kept"] > 0 and facts["after"] < facts["before"]
    assert measured["mixed"]["kl"]["value"] < measured["allocated"]["kl"]["value"]


def test_types_of_llama_cpp_are_refined_and_packed_into_a_gguf(tmp_path: Path) -> None:
    folder = with_model(tmp_path, "llama", **WIDE)
    (folder / "model" / "tokenizer.json").write_text(json.dumps(byte_level(folder)))
    formats = ["q2_k", "iq4_nl", "q4_k"]
    metas = built(folder, pack="gguf", formats=formats, budget={"bits_per_weight": 3.2})
    check_refined(metas)
    chosen = {read_format(name) for name in metas["plan"]["plan"].values()}
    assert len(chosen) > 1 and all(isinstance(form, Ggml) for form in chosen)


def test_several_widths_in_a_matrix_are_refined_beside_an_embedding_that_stays(tmp_path: Path) -> None:
    folder = with_model(tmp_path, "llama", **WIDE)
    formats = ["int2+4-g64@2.5", "baq2.5-g128", "baq3-g128"]
    asked = {"formats": formats, "embeddings": "int8-g64", "budget": {"bits_per_weight": 2.95}}
    metas = built(folder, pack="bitsmith", **asked)
    check_refined(metas)
    assert len({name for unit, name in metas["plan"]["plan"].items() if unit.startswith("layers.")}) > 1
    assert metas["distilled"]["distilled"]["untrained"] == ["embed_tokens", "lm_head"]


def test_a_mixture_is_refined_block_by_block(tmp_path: Path) -> None:
    folder = with_model(tmp_path, "qwen3_moe", **MIXTURE)
    asked = {"formats": ["int2-g32", "int4-g32"], "router": "int8-g64", "budget": {"bits_per_weight": 3.5}}
    training = {**REFINED["distill"], "scope": "stream"}
    check_refined(built(folder, pack="bitsmith", method="autoround", distill=training, **asked))

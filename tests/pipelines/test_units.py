"""Whole builds with other units: embedding and head, blocks, mixtures of experts; packed, loaded back and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builds import CONFIG, open_build, run_build, write_text
from models import tiny_value, write_model

from pipelines.preflight import check
from schemas.errors import InputError
from steps.step import Output

PLAIN: dict[str, Any] = {"distill": None, "formats": ["int2-g32", "int4-g32"]}


def with_model(folder: Path, family: str, tied: bool = False, **changes: Any) -> Path:
    """A folder whose model is of this family, two blocks, and its texts."""
    sizes = {**CONFIG, "intermediate_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
    known = {"llama": CONFIG, "mixtral": {**CONFIG, "intermediate_size": 64}}.get(family, sizes)
    return on_disk(folder, tiny_value(family, tied=tied, dtype=torch.bfloat16, **{**known, **changes}))


def on_disk(folder: Path, model: Output) -> Path:
    folder.mkdir(exist_ok=True)
    write_model(folder / "model", model)
    write_text(folder / "calibrate.jsonl", 12, 1)
    write_text(folder / "evaluate.jsonl", 8, 2)
    return folder


def finished(folder: Path, **changes: Any) -> dict[str, Any]:
    """The meta of every output by node, of a build that has passed pre-flight and run."""
    build = open_build(folder, **{**PLAIN, **changes})
    check(build)
    outputs = run_build(build).outputs
    artifacts = build.runner.store.artifacts
    stored = {node: ports for node, ports in outputs.items() if build.runner.by_id[node].step is not None}
    return {node: dict(artifacts.load(d).meta) for node, ports in stored.items() for d in ports.values()}


def gates(metas: dict[str, Any]) -> dict[str, bool]:
    return {row["name"]: row["passed"] for row in metas["verdict"]["gates"]}


def test_tied_embeddings_are_fixed_beside_a_budget_of_the_linears(tmp_path: Path) -> None:
    metas = finished(tmp_path, embeddings="int8-g64", pack="bitsmith", budget={"bits_per_weight": 3.5})
    plan = metas["plan"]
    assert gates(metas)["weights_match"] and gates(metas)["size_as_predicted"]
    assert plan["plan"]["embed_tokens"] == plan["uniform"]["embed_tokens"] == "int8-g64"
    assert metas["packed"]["bpw"]["linear"] <= 3.5 < metas["packed"]["bpw"]["total"]
    assert metas["packed"]["bytes"]["actual"] < 300 * 64 * 2 + 64 * 1000  # not the bf16 embedding


def test_the_allocator_chooses_the_embedding_within_the_bytes_of_the_file(tmp_path: Path) -> None:
    asked = {"embeddings": "allocate", "pack": "bitsmith"}
    pins = [{"units": "embed_tokens", "min_bits": 4}]
    metas = finished(tmp_path, budget={"bits_per_weight": 3.6, "over": "file"}, pins=pins, **asked)
    assert gates(metas)["weights_match"] and metas["packed"]["bpw"]["total"] <= 3.6
    assert metas["plan"]["plan"]["embed_tokens"] == "int4-g32" and len(set(metas["plan"]["plan"].values())) == 2
    with pytest.raises(InputError, match=r"does not count what the allocator may choose(?s:.*)embed_tokens"):
        check(open_build(tmp_path, **{**PLAIN, **asked, "budget": {"bits_per_weight": 3.6}}))


def test_plain_transformers_loads_a_quantized_head_and_no_embedding(tmp_path: Path) -> None:
    folder = with_model(tmp_path, "llama")
    metas = finished(folder, embeddings={"head": "int8-g64"}, budget={"bits_per_weight": 3.5})
    assert gates(metas)["weights_match"] and metas["plan"]["plan"]["lm_head"] == "int8-g64"
    assert "embed_tokens" not in metas["plan"]["plan"]
    with pytest.raises(InputError, match=r"packs linears, not embeddings(?s:.*)bitsmith"):
        check(open_build(folder, **{**PLAIN, "embeddings": "int8-g64"}))


@pytest.mark.slow
def test_blocks_are_units_and_some_are_kept(tmp_path: Path) -> None:
    metas = finished(
        tmp_path, units="blocks", keep=["layers.1"], sensitivity="fisher", budget={"bits_per_weight": 4.52}
    )
    assert metas["plan"]["plan"] == {"layers.0": "int2-g32"} and gates(metas)["weights_match"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": {"head": "int8-g64"}}, "cannot be treated differently"),
        ({"router": "int8-g64"}, "the model has no router"),
        ({"keep": ["layers.7.*"]}, r"matches no unit(?s:.*)keep\[0\]"),
        ({"keep": ["*"]}, "nothing is left to quantize"),
    ],
)
def test_units_that_cannot_be_are_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check(open_build(tmp_path, **{**PLAIN, **changes}))


def never_chosen(model: Output) -> Output:
    """The mixture with routers that never choose experts 3 and 7: of the others, three always have a logit above 0."""
    tensors = dict(model.tensors)
    for name, tensor in model.tensors.items():
        if name.endswith("mlp.gate.weight"):
            router_ED = tensor.clone()
            router_ED[[1, 4, 6]] = -router_ED[[0, 2, 5]]
            router_ED[[3, 7]] = 0
            tensors[name] = router_ED
    return Output(model.meta, tensors)


def test_experts_that_no_token_reaches_are_built_scored_and_reported(tmp_path: Path) -> None:
    sizes = {**CONFIG, "moe_intermediate_size": 32}
    folder = on_disk(tmp_path, never_chosen(tiny_value("qwen3_moe", dtype=torch.bfloat16, **sizes)))
    asked = {"pack": "bitsmith", "router": "int8-g64", "gates": {"beats_uniform": False, "min_expert_tokens": 1}}
    metas = finished(folder, budget={"bits_per_weight": 3.0}, **asked)
    assert gates(metas) == {
        "weights_match": True,
        "size_as_predicted": True,
        "max_damping": True,
        "min_expert_tokens": False,
    }
    seen = metas["verdict"]["experts"]
    assert seen["experts"] == 16 and seen["without_tokens"] == 4 and seen["fewest"] == 0 and seen["least_own"] == 0
    (note,) = metas["plan"]["certificate"]["notes"]
    assert note.startswith("no token of the scoring text reached layers.0.mlp.experts.3")
    rows = {row["unit"]: row["score"] for row in metas["plan"]["rows"]}
    assert 0 < rows["layers.0.mlp.experts.3.down"] < max(v for n, v in rows.items() if "layers.0.mlp.experts" in n)
    assert len({metas["plan"]["plan"][n] for n in rows if ".experts." in n}) == 2  # experts differ in one file


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_plain_transformers_loads_a_mixture_whose_experts_share_a_format(family: str, tmp_path: Path) -> None:
    folder = with_model(tmp_path, family, tied=True)
    pins = [{"units": "*.experts.*", "formats": ["int4-g32"]}]
    metas = finished(folder, pins=pins, budget={"bits_per_weight": 4.3}, sensitivity="fisher")
    assert gates(metas)["weights_match"] and gates(metas)["size_as_predicted"]
    with pytest.raises(InputError, match="transformers reads all experts in one format"):
        check(open_build(folder, **PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_mixture_is_trained_and_packed_in_our_container(family: str, tmp_path: Path) -> None:
    folder = with_model(tmp_path, family)
    trained = {"tokens": 64, "batch": 2, "held_out": 6, "check_every": 1}
    metas = finished(folder, pack="bitsmith", distill=trained, embeddings="int4-g32", budget={"bits_per_weight": 3.5})
    assert gates(metas)["weights_match"] and gates(metas)["size_as_predicted"]
    with pytest.raises(InputError, match="some experts of a block are kept"):
        check(open_build(folder, **{**PLAIN, "keep": ["*.experts.1.*"]}))

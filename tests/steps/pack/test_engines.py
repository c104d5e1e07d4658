"""What engines load: the rules of steps/pack/engines.py, and what the installed transformers really does.

The second half fails when an upgrade of transformers or compressed-tensors changes what the rules rest on; then look
whether a refusal can go.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_value
from packables import on_disk, random_selection
from selections import fmt

from schemas.errors import InputError
from schemas.pack import Pack
from steps.model.overlay import overlay
from steps.model.structure import units
from steps.pack import run as pack
from steps.pack.engines import readers, refusals, restrict
from steps.step import Env, Output

FORMATS = [fmt(n) for n in ("int2-g32", "int3-g64", "int4-g32", "int4-row", "int4-g128-asym", "int8-g64", "q4_0")]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def test_who_runs_what() -> None:
    found = readers("compressed-tensors", FORMATS)
    refused = {engine: [reason.partition(":")[0] for reason in reasons] for engine, reasons in found.items()}
    assert refused["transformers"] == ["int4-g128-asym", "q4_0"]
    assert refused["vllm"] == ["int2-g32", "int3-g64", "q4_0"]
    assert len(refused["llama.cpp"]) == len(FORMATS)
    assert readers("bitsmith", FORMATS)["transformers"] == []
    assert len(readers("bitsmith", FORMATS)["vllm"]) == len(FORMATS)


def test_a_target_leaves_what_it_runs() -> None:
    kept = [f.name for f in restrict("vllm", "compressed-tensors", FORMATS)]
    assert kept == ["int4-g32", "int4-row", "int4-g128-asym", "int8-g64"]
    with pytest.raises(
        InputError, match=r"(?s)vllm runs none.*int2-g32: vLLM's Marlin kernels take 4 or 8 bits, not 2"
    ):
        restrict("vllm", "compressed-tensors", FORMATS[:2])
    with pytest.raises(InputError, match="does not read our container"):
        restrict("vllm", "bitsmith", FORMATS)


def test_shapes_that_vllm_cannot_tile_are_named() -> None:
    model = tiny_value(hidden_size=96, intermediate_size=128, head_dim=24)
    listed = units(model.meta["config"], model.meta["shapes"])
    (reason,) = refusals("compressed-tensors", [fmt("int4-g32")], {}, listed, "vllm")
    assert "multiples of 64" in reason and "layers.0.self_attn.q_proj has 96 and 96" in reason
    assert refusals("compressed-tensors", [fmt("int4-g32")], {}, listed) == []


UNIFORM, BY_MODULE = ("int4-g32",), ("int4-g32", "int8-g64", "int3-g32", "int2-row")
BY_LAYER = ("int4-g32",) * 4 + ("int8-g32",) * 4 + ("int3-g32",) * 4
ASYMMETRIC, MIXED_ASYMMETRIC = ("int4-g32-asym",), ("int4-g32-asym",) * 4 + ("int4-g64-asym",) * 4


@pytest.mark.parametrize(
    ("formats", "dequantize", "outcome"),
    [
        (UNIFORM, False, "exact"),
        (BY_LAYER, False, "exact"),
        (BY_MODULE, False, "exact"),
        (UNIFORM, True, "exact"),
        (BY_LAYER, True, "wrong"),
        (BY_MODULE, True, "RuntimeError"),
        (ASYMMETRIC, False, "RuntimeError"),
        (MIXED_ASYMMETRIC, False, "RuntimeError"),
        (ASYMMETRIC, True, "exact"),
        (MIXED_ASYMMETRIC, True, "RuntimeError"),
    ],
)
def test_what_the_installed_transformers_loads(
    tmp_path: Path, formats: tuple[str, ...], dequantize: bool, outcome: str
) -> None:
    model = on_disk(tiny_value(dtype=torch.bfloat16, **WIDE), tmp_path / "source")
    selection = random_selection(model, formats)
    (tmp_path / "packed").mkdir()
    spec = Pack(step="pack", target="vllm" if "asym" in formats[0] else None)
    pack.run(spec, {"model": model, "selection": selection}, Env(scratch=tmp_path / "packed"))
    assert _outcome(tmp_path / "packed", overlay(model, selection), dequantize) == outcome


def _outcome(folder: Path, packed: Output, dequantize: bool) -> str:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    asked: dict[str, Any] = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    try:
        with contextlib.redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr("warnings.warn", lambda *_, **__: None)
            loaded = AutoModelForCausalLM.from_pretrained(folder, **asked)
            loaded(input_ids=torch.zeros(1, 1, dtype=torch.long))
    except RuntimeError:
        return "RuntimeError"
    found = dict(loaded.named_parameters())
    names = [n for n in packed.tensors if n.endswith("proj.weight")]
    return "exact" if all(torch.equal(found[n], packed.tensors[n].bfloat16()) for n in names) else "wrong"

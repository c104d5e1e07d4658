"""Mixtures of experts in both containers: what loads exactly, and what the refusals rest on.

The last tests fail when an upgrade of transformers or compressed-tensors changes that; then a refusal may go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_value
from packables import on_disk, random_quantized
from selections import fmt

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.pack import Pack, PackFormat
from steps.model.structure import embedding_unit, expert_role, routers, units
from steps.pack import run as pack
from steps.quantize.qtensor import item_meta
from steps.step import Env, Output
from steps.verify.load_packed import different_weights, load
from steps.verify.loaders import load_own

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
MANY = ("int3-g32", "int4-g32", "int8-row")


def select(found: list[Unit], formats: list[str]) -> Output:
    """Random codes of every unit in its format."""
    children = {}
    for i, (unit, name) in enumerate(zip(found, formats, strict=True)):
        pairs = zip(unit.members, unit.shapes, strict=True)
        parts = [random_quantized(m, fmt(name), shape, 100 * i + j) for j, (m, shape) in enumerate(pairs)]
        members = {q.name: {"shape": list(q.shape), "loss": 0.0, "damping": 0.01} for q in parts}
        tensors = {key: t for q in parts for key, t in q.to_tensors().items()}
        children[unit.name] = Output(item_meta(unit.name, fmt(name), members), tensors)
    return Output({"plan": dict(zip((u.name for u in found), formats, strict=True))}, children=children)


def packed(folder: Path, model: Output, selection: Output, form: PackFormat) -> tuple[Output, Path]:
    source = on_disk(model, folder / "source")
    (folder / "packed").mkdir()
    spec = Pack(step="pack", format=form)
    pack.run(spec, {"model": source, "selection": selection}, Env(scratch=folder / "packed"))
    return source, folder / "packed"


@pytest.mark.parametrize("family", FAMILIES)
def test_our_container_holds_experts_of_any_formats_and_routers(family: str, tmp_path: Path) -> None:
    model = tiny_value(family, tied=True, dtype=torch.bfloat16)
    config, shapes = model.meta["config"], model.meta["shapes"]
    found = [embedding_unit(config, shapes), *units(config, shapes), *routers(config, shapes)]
    selection = select(found, [MANY[i % 3] for i in range(len(found))])
    source, folder = packed(tmp_path, model, selection, "bitsmith")
    ids_NS, logits = torch.arange(1, 17).view(2, 8), []
    for loaded in (load(folder, "cpu"), load_own(folder).eval()):
        assert different_weights(loaded, source, selection) == []
        with torch.no_grad():
            logits.append(loaded(input_ids=ids_NS).logits)
    assert all(torch.equal(each, logits[0]) for each in logits)
    name = next(unit.name for unit in found if expert_role(unit.name) is not None)
    other = select(found, ["int2-row"] * len(found)).children[name]
    changed = Output(selection.meta, children={**selection.children, name: other})
    assert set(different_weights(loaded, source, changed)) == {f"{m}.weight" for m in other.meta["members"]}


def test_experts_that_are_packed_in_part_are_refused_on_loading(tmp_path: Path) -> None:
    model = tiny_value("qwen3_moe", dtype=torch.bfloat16)
    found = [unit for unit in units(model.meta["config"], model.meta["shapes"]) if ".experts.5." not in unit.name]
    _, folder = packed(tmp_path, model, select(found, ["int4-g32"] * len(found)), "bitsmith")
    with pytest.raises(InputError, match=r"packed in part(?s:.*)experts\.5"):
        load(folder, "cpu")


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_plain_transformers_loads_experts_of_one_format_beside_others(family: str, tmp_path: Path) -> None:
    model = tiny_value(family, dtype=torch.bfloat16)
    found = units(model.meta["config"], model.meta["shapes"])
    formats = ["int3-g32" if expert_role(u.name) else MANY[1 + i % 2] for i, u in enumerate(found)]
    selection = select(found, formats)
    source, folder = packed(tmp_path, model, selection, "compressed-tensors")
    assert different_weights(load(folder, "cpu"), source, selection) == []


def outcome(folder: Path, model: Output, selection: Output) -> str:
    """What becomes of a folder that the pack step would refuse to write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "check_accepted", lambda *_: None)
        source, packed_folder = packed(folder, model, selection, "compressed-tensors")
    try:
        return "wrong" if different_weights(load(packed_folder, "cpu"), source, selection) else "exact"
    except (InputError, AttributeError):
        return "error"


def test_experts_of_two_formats_and_quantized_embeddings_are_refused_for_a_reason(tmp_path: Path) -> None:
    model = tiny_value("qwen3_moe", dtype=torch.bfloat16)
    found = units(model.meta["config"], model.meta["shapes"])
    two = select(found, [MANY[i % 2] for i in range(len(found))])
    source = on_disk(model, tmp_path / "m")
    asked: dict[str, Any] = {"model": source, "selection": two}
    with pytest.raises(InputError, match="transformers reads all experts in one format"):
        pack.run(Pack(step="pack"), asked, Env(scratch=tmp_path))
    assert outcome(tmp_path, model, two) in ("wrong", "error")
    dense = tiny_value(dtype=torch.bfloat16)
    ends = select([embedding_unit(dense.meta["config"], dense.meta["shapes"])], ["int8-g32"])
    (tmp_path / "dense").mkdir()
    assert outcome(tmp_path / "dense", dense, ends) == "error"

"""Refinement of every family of formats, of embeddings that are units, and of mixtures of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_value
from refinements import TOKENS, mean_kl, same, trained
from selections import fmt, item, selection_of, solved_selection, units_of

from schemas.distill import Distill
from steps.distill.schedule import split
from steps.distill.student import student
from steps.distill.train import train
from steps.distill.whole import Pair, WholeTask
from steps.model.overlay import overlay
from steps.model.stream import Stream
from steps.model.structure import embedding_unit, head_unit, routers
from steps.model.whole import all_blocks
from steps.step import Env, Output

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
LLAMA_CPP = ("q2_k", "tq2_0", "q3_k", "iq4_nl", "tq1_0", "f16", "q4_k", "q4_0")
WIDTHS = ("int2+4-g32@2.5", "baq2.5-g64", "int2+3-g64@2.25", "baq2.25-row")
HELD_OUT = split(80, 16, 0)[1]
OFFSETS: dict[str, Any] = {
    "codes": {"kind": "offsets"},
    "optimizer": {"kind": "sign"},
    "rates": {"codes": 0.03, "scales": 0.01},
}
LATENTS: dict[str, Any] = {"rates": {"codes": 0.15, "scales": 0.01, "norms": 0.01}}
"""Both move codes of every unit within a few steps."""


@pytest.mark.parametrize(("names", "parts"), [(LLAMA_CPP, OFFSETS), (WIDTHS, LATENTS)], ids=["llama.cpp", "widths"])
def test_other_families_gain_within_format_and_bytes(names: tuple[str, ...], parts: dict[str, Any]) -> None:
    model = tiny_value(dtype=torch.bfloat16, **WIDE)
    selection = solved_selection(model, names)
    found = trained(model, selection, **parts)
    facts = found.meta["distilled"]
    assert facts["after"] < 0.95 * facts["before"] and facts["step_kept"] > 0
    assert facts["before"] == pytest.approx(mean_kl(model, selection, HELD_OUT), rel=1e-4)
    assert facts["after"] == pytest.approx(mean_kl(model, found, HELD_OUT), rel=1e-4)
    plain = [unit for unit, name in selection.meta["plan"].items() if name == "f16"]
    assert facts.get("untrained", []) == plain == [unit for unit in plain if unit in " ".join(facts["notes"])]
    for unit, child in selection.children.items():
        after = found.children[unit]
        assert after.meta == child.meta
        for name, tensor in after.tensors.items():
            before = child.tensors[name]
            assert (tensor.dtype, tensor.shape) == (before.dtype, before.shape)
            assert torch.equal(tensor, before) == (unit in plain or name.endswith(".widths")), name


def with_ends(model: Output, name: str) -> tuple[Output, list[str]]:
    """Every unit in one format, embedding and head in 4 bits; their names."""
    selection, config, shapes = selection_of(model, name), model.meta["config"], model.meta["shapes"]
    ends = [unit for unit in (embedding_unit(config, shapes), head_unit(config, shapes)) if unit is not None]
    coded = {unit.name: item(model, unit, fmt("int4-g32")) for unit in ends}
    return Output(selection.meta, children={**selection.children, **coded}), [unit.name for unit in ends]


def test_the_loss_of_a_step_is_the_kl_of_what_would_be_packed() -> None:
    model = tiny_value(num_hidden_layers=1)
    selection, _ = with_ends(model, "int2-g32")
    facts = trained(model, selection, tokens=8 * 16, rates={"scales": 1e-9}).meta["distilled"]
    trained_on = split(80, 16, 0)[0][:8]
    assert facts["curve"][1]["train"] == pytest.approx(mean_kl(model, selection, trained_on), rel=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_stay_and_are_what_the_student_runs_on(tied: bool) -> None:
    model = tiny_value(tied=tied, dtype=torch.bfloat16)
    selection, ends = with_ends(model, "int2-g32")
    found = trained(model, selection)
    facts = found.meta["distilled"]
    assert facts["after"] < facts["before"] and facts["untrained"] == sorted(ends)
    assert facts["before"] == pytest.approx(mean_kl(model, selection, HELD_OUT), rel=1e-4)
    assert facts["after"] == pytest.approx(mean_kl(model, found, HELD_OUT), rel=1e-4)
    assert all(found.children[name] is selection.children[name] for name in ends)


MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
BLOCKS: dict[str, Any] = {"scope": {"kind": "blocks", "width": 2}, "objective": [{"kind": "outputs"}]}


def with_routers(model: Output, name: str) -> Output:
    """Every unit of a mixture in one format, its routers in 8 bits."""
    selection = selection_of(model, name)
    choosing = routers(model.meta["config"], model.meta["shapes"])
    coded = {unit.name: item(model, unit, fmt("int8-g32")) for unit in choosing}
    return Output(selection.meta, children={**selection.children, **coded})


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_gains_as_a_whole_and_what_is_reported_is_true(family: str) -> None:
    model = tiny_value(family, dtype=torch.bfloat16)
    selection = with_routers(model, "int2-g32")
    found = trained(model, selection, **OFFSETS)
    facts = found.meta["distilled"]
    assert facts["after"] < 0.8 * facts["before"] and facts["step_kept"] > 0
    assert facts["before"] == pytest.approx(mean_kl(model, selection, HELD_OUT), rel=1e-3)
    assert facts["after"] == pytest.approx(mean_kl(model, found, HELD_OUT), rel=1e-3)
    moved = {
        unit
        for unit, child in found.children.items()
        for name, tensor in child.tensors.items()
        if name.endswith(".codes") and not torch.equal(tensor, selection.children[unit].tensors[name])
    }
    assert any(".experts." in unit for unit in moved) and any(unit.endswith("router") for unit in moved)


@pytest.mark.parametrize("scope", ["whole", "blocks"])
def test_a_killed_training_of_a_mixture_ends_in_the_same_bytes(scope: str, tmp_path: Path) -> None:
    """Experts that saw no token have no moments to save."""
    model = never_chosen(tiny_value("qwen3_moe", num_hidden_layers=2))
    selection = selection_of(model, "int2-g32")
    row: dict[str, Any] = {"check_every": 2, "batch": 1, "tokens": 8 * 16, **(BLOCKS if scope == "blocks" else {})}
    whole, steps = trained(model, selection, **row), list[int]()

    def killed(done: int, total: int, what: str) -> None:
        steps.append(done)
        if len(steps) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model, selection, Env(progress=killed, resume=tmp_path), **row)
    after: list[int] = []
    again = Env(progress=lambda done, total, what: after.append(done), resume=tmp_path)
    assert same(whole, trained(model, selection, again, **row))
    assert after[0] == 5


@pytest.mark.parametrize("codes", ["ste", "box", "annealed", "offsets"])
@pytest.mark.parametrize("optimizer", ["adam", "sign"])
def test_an_expert_that_no_token_reaches_stays(codes: str, optimizer: str) -> None:
    model = never_chosen(tiny_value("qwen3_moe", num_hidden_layers=1))
    selection = selection_of(model, "int3-g32")
    asked = {"codes": {"kind": codes}, "optimizer": {"kind": optimizer}, "batch": 4, "tokens": 4 * 4 * 16}
    spec = Distill.model_validate({"step": "distill", "rates": {"codes": 0.1, "scales": 0.01}, **asked})
    stream = Stream(model)
    pair = Pair(stream, Stream(overlay(model, selection)), all_blocks(stream))
    given, moved = (student(s, model, selection, [0], True, "cpu") for s in (None, spec))
    before = {name: matrix.weight(hard=True) for name, matrix in moved.matrices.items()}
    train(spec, WholeTask(spec.objective, pair, given, moved, TOKENS, [0, 1]), list(range(2, 80)), 16, Env())  # type: ignore[arg-type]
    for name, matrix in moved.matrices.items():
        unseen = ".experts.3." in name or ".experts.7." in name
        assert torch.equal(matrix.weight(hard=True), before[name]) == unseen, name


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


def test_every_unit_is_either_trained_or_said_not_to_be() -> None:
    model = tiny_value("qwen2_moe")
    selection = with_routers(model, "int3-g32")
    every = {member for child in selection.children.values() for member in child.meta["members"]}
    assert set(student(None, model, selection, range(3), True, "cpu").matrices) == every
    assert len(units_of(model)) < len(selection.children)

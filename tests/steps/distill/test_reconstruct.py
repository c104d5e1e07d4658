"""Block by block, streamed: the same result as with the whole model in memory, from one block at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import fmt, item, selection_of, units_of

from pipelines.items import units_view
from pipelines.methods.refine import refinement_of
from schemas.distill import Distill, Join, Reconstruct, Training
from schemas.errors import InputError
from steps.distill import join, reconstruct
from steps.distill import run as distill
from steps.distill.judge import KEPT_INPUT
from steps.model.structure import block_prefix, embedding_unit, head_unit
from steps.step import Env, Output, Value

TOKENS = tiny_tokens(120, 16)
ROW: dict[str, Any] = {
    **{name: value for name, value in refinement_of("autoround").model_dump().items() if name in Training.model_fields},
    "rates": {"codes": 0.03, "scales": 0.01},
    "batch": 8,
    "held_out": 20,
    "check_every": 8,
    "tokens": 24 * 8 * 16,
}
JOIN = Join(step="join", held_out=ROW["held_out"])


class Digested(dict[str, Value]):
    """Children whose digests are their names: all that a view needs."""

    @property
    def digests(self) -> dict[str, str]:
        return {name: name for name in self}


def block_of(model: Output, block: int) -> Output:
    """What the runner hands of a model to the item of a block."""
    prefixes = (block_prefix(block), "model.embed_tokens") if block == 0 else (block_prefix(block),)
    weights = {name: tensor for name, tensor in model.tensors.items() if name.startswith(prefixes)}
    return Output({**model.meta, "block": block}, weights)


def streamed(model: Output, selection: Output) -> tuple[Output, list[Output]]:
    spec, refined, hidden = Reconstruct.model_validate({"step": "reconstruct", **ROW}), [], None
    for block in range(model.meta["config"]["num_hidden_layers"]):
        part = units_view(Output(children=Digested(selection.children)), block)
        inputs = {"model": block_of(model, block), "selection": part, "tokens": TOKENS}
        found = reconstruct.run(spec, inputs if hidden is None else {**inputs, "hidden": hidden}, Env())
        refined.append(found["selection"])
        hidden = found["hidden"]
    blocks = Output(children={str(k): part for k, part in enumerate(refined)})
    inputs = {"model": model, "tokens": TOKENS, "selection": selection, "refined": blocks}
    return join.run(JOIN, inputs, Env())["selection"], refined


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_streamed_blocks_are_the_resident_ones_bit_for_bit(family: str) -> None:
    """Embedding and head, which are units here, go where they have to, and stay."""
    model = tiny_value(family, dtype=torch.bfloat16)
    selection = selection_of(model, "int2-g32")
    ends = [
        embedding_unit(model.meta["config"], model.meta["shapes"]),
        head_unit(model.meta["config"], model.meta["shapes"]),
    ]
    coded = {unit.name: item(model, unit, fmt("int4-g32")) for unit in ends if unit is not None}
    selection = Output(selection.meta, children={**selection.children, **coded})
    found, refined = streamed(model, selection)
    resident = {"step": "distill", "scope": {"kind": "blocks"}, "objective": [{"kind": "outputs"}]}
    spec = Distill.model_validate({**ROW, **resident})
    whole = distill.run(spec, {"model": model, "selection": selection, "tokens": TOKENS}, Env())["selection"]
    assert whole.meta["distilled"]["step_kept"] > 0
    assert set(found.children) == set(whole.children) == {u.name for u in units_of(model)} | {"embed_tokens", "lm_head"}
    for unit, child in whole.children.items():
        assert found.children[unit].meta == child.meta
        assert all(torch.equal(t, found.children[unit].tensors[name]) for name, t in child.tensors.items())
    facts = found.meta["distilled"]
    blocks = whole.meta["distilled"]["blocks"]
    assert [part.meta["distilled"]["curve"] for part in refined] == [block["curve"] for block in blocks]
    assert facts["after"] < facts["before"] and facts["measure"] == "KL"
    assert {**facts, "before": 0, "after": 0, "difference": 0} == {
        **whole.meta["distilled"],
        "before": 0,
        "after": 0,
        "difference": 0,
    }
    for name in ("before", "after"):
        assert facts[name] == pytest.approx(whole.meta["distilled"][name], rel=1e-4)
    assert facts["untrained"] == whole.meta["distilled"]["untrained"] == ["embed_tokens", "lm_head"]
    assert found.meta["plan"] == selection.meta["plan"]


def test_blocks_that_make_the_whole_worse_are_not_kept() -> None:
    model = tiny_value(dtype=torch.bfloat16)
    selection, worse = selection_of(model, "int4-g32"), selection_of(model, "int2-g32")
    facts = {"step_kept": 8, "steps": 8, "steps_planned": 8, "tokens": 64, "passes": 1.0, "notes": []}
    blocks = {
        str(k): Output({"distilled": facts}, children=units_view(Output(children=Digested(worse.children)), k).children)
        for k in range(model.meta["config"]["num_hidden_layers"])
    }
    inputs = {"model": model, "tokens": TOKENS, "selection": selection, "refined": Output(children=blocks)}
    found = join.run(JOIN, inputs, Env())["selection"]
    assert found.children == selection.children
    told = found.meta["distilled"]
    assert told["step_kept"] == 0 and told["before"] == told["after"] and told["difference"]["low"] > 0
    assert KEPT_INPUT in told["notes"] and [block["step_kept"] for block in told["blocks"]] == [8] * len(blocks)
    kept = join.run(
        JOIN,
        {
            **inputs,
            "selection": worse,
            "refined": Output(
                children={
                    k: Output(block.meta, children={u: selection.children[u] for u in block.children})
                    for k, block in blocks.items()
                }
            ),
        },
        Env(),
    )["selection"]
    assert kept.children == selection.children and kept.meta["distilled"]["step_kept"] == 8 * len(blocks)


def test_what_leaves_a_block_is_what_its_refined_weights_compute() -> None:
    from selections import modified_transformer

    model = tiny_value(dtype=torch.bfloat16)
    selection = selection_of(model, "int3-g32")
    spec = Reconstruct.model_validate({"step": "reconstruct", **ROW})
    part = units_view(Output(children=Digested(selection.children)), 0)
    found = reconstruct.run(spec, {"model": block_of(model, 0), "selection": part, "tokens": TOKENS}, Env())
    ids_NS = TOKENS.tensors["ids_NS"].long()
    for name, changed in (("quantized_NSD", found["selection"]), ("original_NSD", Output())):
        with torch.no_grad():
            expected = modified_transformer(model, changed)(input_ids=ids_NS, output_hidden_states=True)
        torch.testing.assert_close(found["hidden"].tensors[name], expected.hidden_states[1], rtol=1e-4, atol=1e-5)


def test_a_block_that_does_not_fit_is_refused_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "available_bytes", lambda device: 10)
    with pytest.raises(InputError, match=r"fit in memory\n.*block 0(.|\n)*wanted: \d+ bytes"):
        streamed(tiny_value(), selection_of(tiny_value(), "int3-g32"))

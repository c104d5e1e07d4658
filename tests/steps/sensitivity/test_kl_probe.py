"""The KL probe against transformers' own model with the same weights swapped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import candidates_of, item, modified_transformer, representable, selection_of, units_of
from selections import fmt as form

from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.sensitivity import KLProbe
from steps.calibrate import reference
from steps.sensitivity import kl_probe
from steps.step import Env, Output
from steps.verify.metrics import compare_chunk

SPEC = KLProbe(step="kl_probe", batch=4)


def probe_inputs(model: Output, tokens: Output) -> dict[str, Output]:
    spec = Reference(step="reference", batch=3)
    return {"model": model, "tokens": tokens} | reference.run(spec, {"model": model, "tokens": tokens}, Env())


def score(inputs: dict[str, Output], candidate: Output, env: Env, spec: KLProbe = SPEC) -> Output:
    return kl_probe.run(spec, inputs | {"candidates": candidate}, env)["scores"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_equals_a_full_forward_of_the_modified_model(family: str) -> None:
    model, tokens, env = tiny_value(family), tiny_tokens(6, 16), Env()
    inputs = probe_inputs(model, tokens)
    ids, lengths = tokens.tensors["ids_NS"].long(), tokens.tensors["lengths_N"]
    predicted = torch.arange(15) < lengths[:, None] - 1
    with torch.no_grad():
        original = modified_transformer(model, Output())(input_ids=ids).logits[:, :-1]
    for name, candidate in candidates_of(model, "int3-g32", "int2-row-asym").children.items():
        found = score(inputs, candidate, env).meta
        changed = modified_transformer(model, Output(children={found["unit"]: candidate}))
        with torch.no_grad():
            logits = changed(input_ids=ids).logits[:, :-1]
        kl = compare_chunk(original[predicted], logits[predicted], ids[:, 1:][predicted]).kl_P.double()
        document = tokens.tensors["document_N"][:, None].expand(-1, 15)[predicted]
        assert f"{found['unit']}/{found['format']}" == name
        assert found["score"] == pytest.approx(kl.mean().item(), rel=1e-4)
        assert found["documents"] == pytest.approx([kl[document == d].mean().item() for d in range(3)], rel=1e-4)
        assert found["weights"] == [int((document == d).sum()) for d in range(3)]


def test_probing_leaves_no_trace_and_prepares_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, env, prepared = tiny_value(), Env(), []
    inputs = probe_inputs(model, tiny_tokens())
    prepare = kl_probe.prepare
    monkeypatch.setattr(kl_probe, "prepare", lambda *given: (prepared.append(1), prepare(*given))[1])
    units = units_of(model)
    first = score(inputs, item(model, units[5], form("int2-g32")), env)
    score(inputs, item(model, units[0], form("int2-g32")), env)
    assert first == score(inputs, item(model, units[5], form("int2-g32")), env)
    assert first == score(inputs, item(model, units[5], form("int2-g32")), Env())
    assert len(prepared) == 2


def test_other_tokens_do_not_meet_remembered_ones() -> None:
    model, env = tiny_value(), Env()
    candidate = item(model, units_of(model)[3], form("int3-g32"))
    here, there = probe_inputs(model, tiny_tokens(seed=1)), probe_inputs(model, tiny_tokens(seed=2))
    assert score(here, candidate, env) != score(there, candidate, env)
    assert score(here, candidate, env) == score(here, candidate, Env())


def test_recomputed_reference_logits_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_value()
    inputs, candidate = probe_inputs(model, tiny_tokens()), item(model, units_of(model)[4], form("int3-row"))
    kept = score(inputs, candidate, Env()).meta
    monkeypatch.setattr(kl_probe, "RESIDENT_LOGITS", 0)
    assert score(inputs, candidate, Env()).meta["documents"] == pytest.approx(kept["documents"], rel=1e-5)


def test_exact_candidates_score_zero() -> None:
    model = tiny_value()
    selection = selection_of(model, "int4-g32")
    inputs = probe_inputs(representable(model, selection), tiny_tokens())
    assert all(score(inputs, child, Env()).meta["score"] < 1e-9 for child in selection.children.values())


def test_meaningless_scores_are_refused_by_name() -> None:
    model = tiny_value()
    unit = units_of(model)[2]
    broken = item(model, unit, form("int4-g32"))
    scale = f"{unit.members[0]}.scale"
    infinite = replace(broken, tensors={**broken.tensors, scale: broken.tensors[scale] * float("inf")})
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.gate_up in int4-g32"):
        score(probe_inputs(model, tiny_tokens()), infinite, Env())
    silent = replace(model, tensors={**model.tensors, "model.layers.0.mlp.down_proj.weight": torch.zeros(32, 64)})
    with pytest.raises(InputError, match="zero at every token"):
        score(probe_inputs(silent, tiny_tokens()), broken, Env())
    stranger = replace(broken, meta={**broken.meta, "unit": "layers.9.mlp.down"})
    with pytest.raises(InputError, match=r"layers\.9"):
        score(probe_inputs(model, tiny_tokens()), stranger, Env())

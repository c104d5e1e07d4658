"""Every kind of unit is scored by what it does to the predictions: embedding, head, both in one, experts, blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import fmt, item, modified_transformer
from torch import nn

from schemas.artifact import Unit, item_name
from schemas.calibrate import Reference
from schemas.sensitivity import Fisher, Hutchinson, KLProbe
from steps.calibrate import reference
from steps.model.overlay import dequantized
from steps.model.stream import Stream
from steps.model.structure import find_units, head_unit, order_groups, units
from steps.sensitivity import backward, fisher, hutchinson, kl_probe
from steps.sensitivity.capture import Linears, Pass
from steps.sensitivity.ends import Ends
from steps.step import Env, Output
from steps.verify.metrics import compare_chunk

FORMAT = "int3-g32"
CASES = [
    ("llama", False, ["embed_tokens", "lm_head"]),
    ("llama", True, ["embed_tokens"]),
    ("qwen3", False, ["layers.1", "layers.0.self_attn.k_proj"]),
    ("mixtral", True, ["layers.1.block_sparse_moe.experts.2.gate_up", "layers.2.block_sparse_moe.router", "layers.0"]),
    ("qwen2_moe", False, ["layers.0.mlp.shared_expert.down", "layers.2.mlp.experts.1.down", "layers.1.mlp.gate_up"]),
    ("qwen3_moe", False, ["layers.1.mlp.experts.5.gate_up", "layers.1.mlp.experts.6.up_proj", "layers.0.mlp.router"]),
]


def candidates(model: Output, names: list[str]) -> Output:
    found = find_units(model.meta["config"], model.meta["shapes"], names)
    assert {u.name for u in found} == set(names)
    return Output(children={item_name(u.name, FORMAT): item(model, u, fmt(FORMAT)) for u in found})


@pytest.mark.parametrize(("family", "tied", "names"), CASES)
def test_the_probe_equals_a_full_forward_of_the_modified_model(family: str, tied: bool, names: list[str]) -> None:
    model, tokens, env = tiny_value(family, tied=tied), tiny_tokens(6, 16), Env()
    inputs = {"model": model, "tokens": tokens}
    inputs |= reference.run(Reference(step="reference"), inputs, env)
    ids = tokens.tensors["ids_NS"].long()
    predicted = torch.arange(15) < tokens.tensors["lengths_N"][:, None] - 1
    with torch.no_grad():
        original = modified_transformer(model, Output())(input_ids=ids).logits[:, :-1][predicted]
    for candidate in candidates(model, names).children.values():
        found = kl_probe.run(KLProbe(step="kl_probe"), inputs | {"candidates": candidate}, env)["scores"].meta
        with torch.no_grad():
            changed = modified_transformer(model, Output(children={found["unit"]: candidate}))(input_ids=ids).logits
        kl = compare_chunk(original, changed[:, :-1][predicted], ids[:, 1:][predicted]).kl_P.double()
        assert found["score"] == pytest.approx(kl.mean().item(), rel=1e-4)
        assert found["score"] > 1e-5


def oracle(model: Output, unit: Unit, candidate: Output, tokens: Output, labels_P: torch.Tensor) -> float:
    """Mean of a^2 / 2, with a from adding epsilon_NS * dW x to the outputs of transformers' modules."""
    transformer, lengths = modified_transformer(model, Output()), tokens.tensors["lengths_N"]
    ids_NS = tokens.tensors["ids_NS"].long()
    epsilon_NS = torch.zeros(ids_NS.shape, requires_grad=True)

    def add(change: Callable[[torch.Tensor], torch.Tensor], _m: nn.Module, x: tuple[Any, ...], z: Any) -> Any:
        return z + epsilon_NS[..., None] * change(x[0].detach())

    for member in unit.members:
        own_OI = model.tensors[f"{member}.weight"]
        dW_OI = dequantized(candidate, member) - own_OI
        if unit.use in ("embedding", "tied"):
            transformer.model.embed_tokens.register_forward_hook(partial(add, lambda ids, dW_OI=dW_OI: dW_OI[ids]))
        if unit.use in ("head", "tied"):
            transformer.lm_head.register_forward_hook(partial(add, lambda x, dW_OI=dW_OI: x @ dW_OI.T))
        if unit.use == "linear":
            module = transformer.get_submodule(member)
            module.register_forward_hook(partial(add, lambda x, dW_OI=dW_OI: x @ dW_OI.T))
    log_q_NSV = transformer(input_ids=ids_NS).logits.log_softmax(-1)
    predicted_NS = torch.arange(ids_NS.shape[1]) < lengths[:, None] - 1
    (a_NS,) = torch.autograd.grad(log_q_NSV[predicted_NS].gather(1, labels_P[:, None]).sum(), epsilon_NS)
    return float((a_NS.square() / 2)[predicted_NS].double().mean())


@pytest.mark.parametrize(("family", "tied", "names"), CASES[:3])
def test_fisher_equals_explicit_autograd(
    family: str, tied: bool, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = tiny_value(family, tied=tied), tiny_tokens(5, 12)
    labels = torch.arange(int(tokens.tensors["lengths_N"].sum()) - 5) * 7 % 97
    monkeypatch.setattr(backward, "draw_labels", lambda p_PV, samples, generator: labels[:, None])
    offered = candidates(model, names)
    inputs = {"model": model, "candidates": offered, "tokens": tokens}
    found = fisher.run(Fisher(step="fisher", batch=5), inputs, Env())["scores"]
    for unit in find_units(model.meta["config"], model.meta["shapes"], names):
        name = item_name(unit.name, FORMAT)
        expected = oracle(model, unit, offered.children[name], tokens, labels)
        assert found.children[name].meta["score"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("family", "tied", "names"), [CASES[0], CASES[1], CASES[3]])
def test_fisher_and_hutchinson_come_near_the_probe(family: str, tied: bool, names: list[str]) -> None:
    """A second-order estimate of a small change: of 8 bits. Hutchinson knows no direction, so only its size is held."""
    model, tokens, env = tiny_value(family, tied=tied), tiny_tokens(8, 16, ragged=False), Env()
    found = find_units(model.meta["config"], model.meta["shapes"], names)
    items = {item_name(u.name, "int8-g32"): item(model, u, fmt("int8-g32")) for u in found if "router" not in u.name}
    for each in items.values():  # what the quantize step would have recorded
        for member, facts in each.meta["members"].items():
            own_OI = model.tensors[f"{member}.weight"]
            facts["relative_error"] = float((dequantized(each, member) - own_OI).norm() / own_OI.norm())
    inputs = {"model": model, "tokens": tokens, "candidates": Output(children=items)}
    refer = inputs | reference.run(Reference(step="reference"), inputs, env)
    second = fisher.run(Fisher(step="fisher", samples=64), inputs, env)["scores"].children
    rough = hutchinson.run(Hutchinson(step="hutchinson", samples=4), inputs, env)["scores"].children
    for name, each in items.items():
        kl = kl_probe.run(KLProbe(step="kl_probe"), refer | {"candidates": each}, env)["scores"].meta["score"]
        assert kl / 4 < second[name].meta["score"] < 4 * kl  # cross terms between tokens are left out
        assert kl / 10 < rough[name].meta["score"] < 10 * kl


def test_units_are_found_by_name_however_the_model_was_cut() -> None:
    for family in ("llama", "mixtral", "qwen2_moe", "qwen3_moe"):
        model = tiny_value(family)
        config, shapes = model.meta["config"], model.meta["shapes"]
        for cut in ("fused", "linears", "blocks"):
            made = units(config, shapes, cut)
            assert find_units(config, shapes, [u.name for u in reversed(made)]) == made
            members = [m for u in made for m in u.members]
            groups = [g for k in range(3) for g in order_groups(config, k) if not g.router]
            assert len(members) == len(set(members)) == sum(len(g.members) for g in groups)
    assert head_unit(tiny_value(tied=True).meta["config"], {}) is None


def of_documents(dot_MP: torch.Tensor, document_P: torch.Tensor) -> list[float]:
    """Sum of squares by document, mean over samples, of three documents."""
    square_P = dot_MP.double().square().mean(0)
    return [float(square_P[document_P == d].sum()) for d in range(3)]


def test_squared_gradients_by_row_are_what_a_change_of_that_row_alone_squares_to() -> None:
    """An input whose first component is 1, changed by 1 in one row there, moves that row's output by 1."""
    generator = torch.Generator().manual_seed(0)
    document_P = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    x_PI = torch.randn(7, 32, generator=generator)
    x_PI[:, 0] = 1
    at_R = torch.tensor([1, 4, 5])
    routed = Pass(x_PI[at_R], torch.randn(2, 3, 5, generator=generator), at_R)
    dense = Pass(x_PI, torch.randn(2, 7, 5, generator=generator))
    linears = Linears({"a": dense, "b": routed}, {"a": 5, "b": 5, "c": 5}, 7, 2)
    for path in "abc":
        square_CO = linears.squares(path, document_P, 3)
        for row in range(5):
            delta_OI = torch.zeros(5, 32)
            delta_OI[row, 0] = 1
            assert square_CO[:, row].tolist() == pytest.approx(of_documents(linears.dot(path, delta_OI), document_P))
    stream = Stream(tiny_value())
    labels, gradient_MPD = torch.arange(14).view(7, 2), torch.randn(2, 7, 32, generator=generator)
    ends = Ends(stream, torch.arange(7), x_PI, labels, gradient_MPD)
    delta_VD = torch.zeros(97, 32)
    delta_VD[11, 0] = 1
    square_CV = ends.squares("lm_head", document_P, 3)
    assert square_CV[:, 11].tolist() == pytest.approx(of_documents(ends.dot("lm_head", delta_VD), document_P), rel=1e-4)
    every_C = torch.zeros(3, dtype=torch.float64)
    for column in range(32):  # of the embedding: the mean over components, since rows record their whole error
        delta_VD = torch.zeros(97, 32)
        delta_VD[:, column] = 1
        dot_MP = ends.dot("model.embed_tokens", delta_VD)
        every_C += torch.tensor(of_documents(dot_MP, document_P), dtype=torch.float64) / 32
    assert ends.squares("model.embed_tokens", document_P, 3)[:, 50].tolist() == pytest.approx(
        every_C.tolist(), rel=1e-4
    )

"""Statistics of a block against what hooks on the whole transformers model see."""

from __future__ import annotations

import json

import pytest
import torch
from models import block_view, model_tensors, tiny_config, tiny_tokens, tiny_transformer, tiny_value, value_of

from schemas.calibrate import Calibrate
from schemas.errors import InputError
from steps.calibrate import hessian
from steps.calibrate.hessian import Hessian, spectrum
from steps.calibrate.statistics import run
from steps.model.structure import order_groups
from steps.model.windows import valid_NS
from steps.step import Env, Output


def calibrated(model: Output, tokens: Output, batch: int = 4) -> list[dict[str, Output]]:
    """The outputs of every block, hidden states carried."""
    spec, results = Calibrate(step="calibrate", batch=batch, ends=True), []
    carried: dict[str, Output] = {}
    for k in range(model.meta["config"]["num_hidden_layers"]):
        results.append(run(spec, {"model": block_view(model, k), "tokens": tokens, **carried}, Env()))
        carried = {"hidden": results[-1]["hidden"]}
    return results


@torch.no_grad()
def inputs_of_linears(whole: torch.nn.Module, tokens: Output) -> dict[str, torch.Tensor]:
    """x_TI fp64 of every linear of the whole model at valid positions, windows in order, in one batch."""
    valid, seen = valid_NS(tokens), {}
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _m, args, name=name: seen.update({name: args[0][valid].double()}))
    whole(input_ids=tokens.tensors["ids_NS"].long())
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_block_by_block_equals_hooks_on_the_whole_model(family: str, tokens: Output) -> None:
    config = tiny_config(family)
    whole = tiny_transformer(config)
    results = calibrated(value_of(config, model_tensors(whole)), tokens)
    seen = inputs_of_linears(whole, tokens)
    for k, result in enumerate(results):
        statistics = result["statistics"]
        assert statistics.meta["tokens"] == tokens.meta["tokens"]
        for group in order_groups(config, k):
            for member in group.members:
                x_TI = seen[f"model.layers.{k}.{member}"]
                expected = (2 / len(x_TI) * x_TI.T @ x_TI).float()
                H_II = statistics.tensors[f"{group.name}.hessian"]
                assert H_II.dtype == torch.float32 and torch.equal(H_II, H_II.T)
                torch.testing.assert_close(H_II, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
                absmax = x_TI.abs().amax(0).float()
                torch.testing.assert_close(statistics.tensors[f"{group.name}.absmax"], absmax, rtol=1e-5, atol=1e-6)
                mean_square = x_TI.square().mean(0).float()
                torch.testing.assert_close(statistics.tensors[f"{group.name}.mean_square"], mean_square)


def test_half_the_diagonal_is_the_mean_square(tiny_model: Output, tokens: Output) -> None:
    statistics = calibrated(tiny_model, tokens)[0]["statistics"].tensors
    for group in order_groups(tiny_model.meta["config"], 0):
        half = statistics[f"{group.name}.hessian"].diagonal() / 2
        torch.testing.assert_close(half, statistics[f"{group.name}.mean_square"], rtol=1e-5, atol=0)


def test_the_batch_size_and_the_order_of_windows_change_only_rounding(tiny_model: Output, tokens: Output) -> None:
    reversed_tokens = Output(tokens.meta, {n: t.flip(0) for n, t in tokens.tensors.items()})
    expected = calibrated(tiny_model, tokens, 6)
    for other in (calibrated(tiny_model, tokens, 1), calibrated(tiny_model, reversed_tokens, 6)):
        for mine, theirs in zip(expected, other, strict=True):
            for name, tensor in mine["statistics"].tensors.items():
                scale = float(tensor.abs().max())
                torch.testing.assert_close(theirs["statistics"].tensors[name], tensor, rtol=1e-5, atol=1e-6 * scale)


def test_a_second_run_gives_the_same_bytes_also_with_other_threads(tiny_model: Output, tokens: Output) -> None:
    threads, runs = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            runs.append(calibrated(tiny_model, tokens))
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(*runs, strict=True):
        for port in ("statistics", "hidden"):
            assert first[port].meta == second[port].meta
            assert all(torch.equal(t, second[port].tensors[n]) for n, t in first[port].tensors.items())


def test_padding_is_not_counted(tiny_model: Output, tokens: Output) -> None:
    ids_NS = torch.where(valid_NS(tokens), tokens.tensors["ids_NS"], 7)
    other = Output(tokens.meta, {**tokens.tensors, "ids_NS": ids_NS})
    for mine, theirs in zip(calibrated(tiny_model, tokens), calibrated(tiny_model, other), strict=True):
        for name, tensor in mine["statistics"].tensors.items():
            assert torch.equal(tensor, theirs["statistics"].tensors[name])


def test_the_carry_is_lent_not_consumed_and_ends_with_the_last_block(tiny_model: Output, tokens: Output) -> None:
    first = calibrated(tiny_model, tokens)
    lent = first[0]["hidden"].tensors["hidden_NSD"].clone()
    inputs = {"model": block_view(tiny_model, 1), "tokens": tokens, "hidden": first[0]["hidden"]}
    run(Calibrate(step="calibrate"), inputs, Env())
    assert torch.equal(first[0]["hidden"].tensors["hidden_NSD"], lent)
    assert not first[-1]["hidden"].tensors


def test_meta_is_json_and_reports_the_rank_that_few_tokens_leave(tiny_model: Output) -> None:
    few = tiny_tokens(windows=2, length=10, ragged=False)
    distinct = len(few.tensors["ids_NS"].unique())
    assert distinct < 20 < 32
    for k, result in enumerate(calibrated(tiny_model, few)):
        meta = result["statistics"].meta
        json.dumps(meta, allow_nan=False)
        assert meta["tokens"] == 20
        # Block 0 sees normed embeddings: as many directions as distinct ids. Attention makes every position differ.
        assert meta["groups"]["self_attn.qkv"]["rank"] == (distinct if k == 0 else 20)


def test_spectrum_of_known_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    Q_II = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    values = torch.tensor([100.0, 50.0, 4.0, 2.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    H_II = (Q_II * values @ Q_II.T).float()
    assert spectrum(H_II) == {"rank": 6, "condition": 200.0, "dead": 0}
    assert spectrum(torch.diag(torch.tensor([3.0, 0.0]))) == {"rank": 1, "condition": 1.0, "dead": 1}
    assert spectrum(torch.zeros(2, 2)) == {"rank": 0, "condition": 0.0, "dead": 2}
    monkeypatch.setattr(hessian, "SPECTRUM_LIMIT", 4)
    assert spectrum(H_II) == {"rank": None, "condition": None, "dead": 0}


def test_many_small_sums_stay_as_accurate_as_one_fp64_product() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(4096, 16, generator=generator) + 3.0
    collector = Hessian.empty(16, torch.device("cpu"))
    for part in torch.tensor_split(x_TI, 512):
        collector.add(part)
    oracle = 2 / 4096 * (x_TI.double().T @ x_TI.double())
    error = float(torch.linalg.matrix_norm(collector.result().double() - oracle) / torch.linalg.matrix_norm(oracle))
    assert collector.tokens == 4096 and error < 2 * torch.finfo(torch.float32).eps


def test_a_model_that_overflows_is_refused() -> None:
    model = tiny_value(seed=1)
    huge = {n: t * 1e30 if n == "model.layers.0.mlp.down_proj.weight" else t for n, t in model.tensors.items()}
    huge["model.layers.0.mlp.up_proj.weight"] = huge["model.layers.0.mlp.up_proj.weight"] * 1e20
    with pytest.raises(InputError, match=r"(?s)NaN or infinite.*tiny: output of block 0"):
        calibrated(Output(model.meta, huge), tiny_tokens())


def test_no_weight_is_touched(tokens: Output) -> None:
    model = tiny_value(seed=2)
    before = {n: t.clone() for n, t in model.tensors.items()}
    calibrated(model, tokens)
    assert all(torch.equal(t, before[n]) for n, t in model.tensors.items())


def test_the_last_block_has_what_head_and_embedding_see(tokens: Output) -> None:
    config = tiny_config()
    whole = tiny_transformer(config)
    *others, last = calibrated(value_of(config, model_tensors(whole)), tokens)
    x_TI = inputs_of_linears(whole, tokens)["lm_head"]
    H_II = last["statistics"].tensors["lm_head.hessian"]
    expected = (2 / len(x_TI) * x_TI.T @ x_TI).float()
    torch.testing.assert_close(H_II, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    ids_T = tokens.tensors["ids_NS"][valid_NS(tokens)].long()
    counted = {i: ids_T.tolist().count(i) / len(ids_T) for i in range(97)}
    frequency_V = last["statistics"].tensors["embed_tokens.frequency"]
    torch.testing.assert_close(frequency_V, torch.tensor([counted[i] for i in range(97)]))
    assert last["statistics"].meta["groups"]["embed_tokens"] == {
        "tokens": len(ids_T),
        "rows_seen": len(set(ids_T.tolist())),
    }
    assert not any("lm_head.hessian" in other["statistics"].tensors for other in others)


@torch.no_grad()
def routed_inputs(model: Output, tokens: Output) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Per block, x_TI fp64 of gate_up and of down by expert path, from transformers' router and plain tensor maths."""
    whole, valid = tiny_transformer(model.meta["config"]), valid_NS(tokens)
    into: dict[int, torch.Tensor] = {}
    for k, layer in enumerate(whole.model.layers):
        layer.mlp.register_forward_pre_hook(lambda _m, args, k=k: into.update({k: args[0][valid]}))
    whole(input_ids=tokens.tensors["ids_NS"].long())
    wide, narrow = list[dict[str, torch.Tensor]](), list[dict[str, torch.Tensor]]()
    for k, layer in enumerate(whole.model.layers):
        _, _, index_TK = layer.mlp.gate(into[k])
        experts, wide_k, narrow_k = layer.mlp.experts, {}, {}
        for e in range(experts.num_experts):
            x_RD = into[k][(index_TK == e).any(-1)]
            gate, up = (x_RD @ experts.gate_up_proj[e].T).chunk(2, dim=-1)
            wide_k[f"experts.{e}"], narrow_k[f"experts.{e}"] = (
                x_RD.double(),
                (torch.nn.functional.silu(gate) * up).double(),
            )
        wide.append(wide_k)
        narrow.append(narrow_k)
    return wide, narrow


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_expert_sees_its_own_tokens_and_leans_on_its_layer(family: str, tokens: Output) -> None:
    model = tiny_value(family)
    wide, narrow = routed_inputs(model, tokens)
    path = "block_sparse_moe" if family == "mixtral" else "mlp"
    for k, result in enumerate(calibrated(model, tokens)):
        statistics = result["statistics"]
        pooled_II = 2 * sum(x.T @ x for x in wide[k].values()) / sum(len(x) for x in wide[k].values())
        squares = (
            2 * sum(float(x.square().sum()) for x in narrow[k].values()) / sum(x.numel() for x in narrow[k].values())
        )
        for e in wide[k]:
            for kind, seen, shared_II in (
                ("gate_up", wide[k][e], pooled_II),
                ("down", narrow[k][e], squares * torch.eye(narrow[k][e].shape[1], dtype=torch.float64)),
            ):
                name, meta = f"{path}.{e}.{kind}", statistics.meta["groups"][f"{path}.{e}.{kind}"]
                prior = seen.shape[1]
                assert meta == {"tokens": len(seen), "own": len(seen) / (len(seen) + prior)}
                expected = ((2 * seen.T @ seen + prior * shared_II) / (len(seen) + prior)).float()
                scale = float(expected.abs().max())
                torch.testing.assert_close(
                    statistics.tensors[f"{name}.hessian"], expected, rtol=1e-4, atol=1e-5 * scale
                )
        assert statistics.meta["experts"]["experts"] == len(wide[k])
        assert statistics.meta["experts"]["fewest"] == min(len(x) for x in wide[k].values())


def test_an_expert_without_tokens_has_its_layers_hessian(tokens: Output) -> None:
    model = tiny_value("qwen3_moe")
    ids_NS = tokens.tensors["ids_NS"][:1, :2]
    few = Output(tokens.meta, {"ids_NS": ids_NS, "lengths_N": torch.tensor([2]), "document_N": torch.tensor([0])})
    statistics = calibrated(model, few)[1]["statistics"]
    found = statistics.meta["experts"]
    assert found["without"] >= 4 and found["fewest"] == 0  # 2 tokens, 2 experts each, of 8
    unseen = [n for n, meta in statistics.meta["groups"].items() if meta["tokens"] == 0 and n.endswith("gate_up")]
    H_II = [statistics.tensors[f"{n}.hessian"] for n in unseen]
    assert all(torch.equal(H, H_II[0]) and torch.isfinite(H).all() and H.diagonal().min() > 0 for H in H_II)
    assert statistics.meta["groups"][unseen[0]]["own"] == 0

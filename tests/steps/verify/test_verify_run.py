"""The verdict on a packed folder: right numbers for a right folder, failed gates for a wrong one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from packables import on_disk
from safetensors.torch import load_file, save_file
from selections import selection_of, units_of

from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.pack import Pack
from schemas.report import Contrast, GateRow, Measured, Speed
from schemas.verify import Evaluate, Gates, Measure, Verify
from steps.calibrate import reference
from steps.pack import run as pack
from steps.step import Env, Output
from steps.verify import evaluate, measure
from steps.verify import run as verify
from steps.verify.load_packed import different_weights, folder_of, load

SPEC = Verify(step="verify", batch=4, bootstrap=200, gates=Gates(max_kl=100.0, max_bytes=10**7))
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def build(folder: Path, dtype: torch.dtype, *, tied: bool, norms: bool = False) -> dict[str, Output]:
    """Inputs of verify: a mixed plan of 4 and 6 bits, uniform 3 bits, greedy the same as the plan."""
    model = on_disk(tiny_value(dtype=dtype, tied=tied, **WIDE), folder / "source")
    names = {u.name: ("int6-g64", "int4-row", "int5-g32-sym")[i % 3] for i, u in enumerate(units_of(model))}
    selection = selection_of(model, names)
    if norms:
        trained = {"model.norm.weight": 1.01 * model.tensors["model.norm.weight"].float()}
        meta = {**selection.meta, "distilled": {"before": 2.0, "after": 1.0, "step_kept": 1, "tokens": 9}}
        selection = Output(meta, children={**selection.children, "norms": Output(tensors=trained)})
    tokens = tiny_tokens(12, 16, documents=6)
    env = Env(scratch=folder)
    inputs = {"model": model, "selection": selection, "tokens": tokens}
    inputs |= reference.run(Reference(step="reference"), inputs, env)
    spec = Evaluate(step="evaluate", batch=4)
    for port, formats in (("allocated", names), ("uniform", "int3-g64"), ("greedy", names)):
        quantized = selection_of(model, formats)
        inputs[port] = evaluate.run(spec, {**inputs, "selection": quantized}, env)["evaluation"]
    (folder / "packed").mkdir()
    inputs |= pack.run(Pack(step="pack"), inputs, Env(scratch=folder / "packed"))
    size = inputs["packed"].meta["bytes"]["actual"]
    inputs["plan"] = Output({"uniform": {}, "bytes": {"plan": size, "uniform": size - 8, "greedy": size}})
    return inputs


def judged(inputs: Mapping[str, Output], scratch: Path, spec: Verify = SPEC) -> Mapping[str, Any]:
    scratch.mkdir()
    return verify.run(spec, inputs, Env(scratch=scratch))["verdict"].meta


def gate(meta: Mapping[str, Any], name: str) -> GateRow:
    return next(GateRow.model_validate(row) for row in meta["gates"] if row["name"] == name)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    return build(tmp_path_factory.mktemp("build"), torch.float32, tied=True)


@pytest.fixture(scope="module")
def meta(inputs: dict[str, Output], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    return judged(inputs, tmp_path_factory.mktemp("verdict") / "scratch")


def altered(inputs: Mapping[str, Output], folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Output:
    """The packed value with some tensors changed in its file."""
    packed = inputs["packed"]
    tensors = load_file(packed.files["model.safetensors"])
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "weights", metadata={"format": "pt"})
    return Output(packed.meta, files={**packed.files, "model.safetensors": folder / "weights"})


def test_a_right_folder_passes_every_gate(meta: Mapping[str, Any]) -> None:
    names = [row["name"] for row in meta["gates"]]
    assert names == ["weights_match", "size_as_predicted", "max_kl", "max_bytes", "max_damping", "beats_uniform"]
    assert meta["passed"] and all(row["passed"] for row in meta["gates"])
    assert meta["weights"] == {"compared": 29, "different": []}
    assert (meta["device"], meta["dtype"], meta["notes"]) == ("cpu", "float32", [])


def test_the_verdict_is_json_in_the_words_of_the_report(meta: Mapping[str, Any]) -> None:
    assert json.loads(json.dumps(meta, allow_nan=False)) == meta
    for name in ("original", "mixed", "allocated", "uniform", "greedy"):
        Measured.model_validate(meta["metrics"][name])
    pairs = [(c.first, c.second, c.verdict) for c in map(Contrast.model_validate, meta["contrasts"])]
    assert pairs == [
        ("mixed", "uniform", "better"),
        ("allocated", "uniform", "better"),
        ("allocated", "greedy", "no difference"),
    ]
    speed = Speed.model_validate(meta["speed"])
    assert speed.prefill_tokens_per_second > 0 and speed.decode_tokens_per_second > 0
    assert speed.peak_memory_bytes > 10**7


def test_the_loaded_model_measures_as_the_same_weights_in_memory_do(
    inputs: dict[str, Output], meta: Mapping[str, Any]
) -> None:
    """In fp32 nothing is rounded on loading, so only the order of summation differs from `evaluate`."""
    for ours, theirs in zip(meta["documents"], inputs["allocated"].meta["documents"], strict=True):
        assert ours["tokens"] == theirs["tokens"] and ours["top1"] == theirs["top1"]
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-4)
        assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-5)
    original, mixed = meta["metrics"]["original"], meta["metrics"]["mixed"]
    assert original["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert mixed["bytes"] == inputs["packed"].meta["bytes"]["actual"] < original["bytes"]
    assert meta["metrics"]["uniform"]["bytes"] == mixed["bytes"] - 8


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_trained_bf16_model_is_compared_in_the_dtype_it_loads_in(tmp_path: Path, tied: bool) -> None:
    found = judged(build(tmp_path, torch.bfloat16, tied=tied, norms=True), tmp_path / "scratch")
    assert found["dtype"] == "bfloat16" and gate(found, "weights_match").passed
    assert [c["first"] for c in found["contrasts"]] == ["mixed", "allocated", "allocated", "mixed"]


def halve_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight_scale"][3, 0] /= 2


def flip_code(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.o_proj.weight_packed"][0, 0] ^= 1


def nudge_norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][0] += 1e-3


def drop_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.2.input_layernorm.weight"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (halve_scale, "model.layers.1.mlp.down_proj.weight"),
        (flip_code, "model.layers.0.self_attn.o_proj.weight"),
        (nudge_norm, "model.norm.weight"),
        (drop_norm, "model.layers.2.input_layernorm.weight"),
    ],
)
def test_a_wrong_file_fails_and_names_the_weight(
    inputs: dict[str, Output], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], name: str
) -> None:
    packed = altered(inputs, tmp_path / "altered", change)
    (tmp_path / "folder").mkdir()
    loaded = load(folder_of(packed.files, tmp_path / "folder"), "cpu")
    assert different_weights(loaded, inputs["model"], inputs["selection"]) == [name]


def test_a_wrong_file_fails_its_gate_and_the_verdict(inputs: dict[str, Output], tmp_path: Path) -> None:
    found = judged({**inputs, "packed": altered(inputs, tmp_path / "altered", halve_scale)}, tmp_path / "scratch")
    row = gate(found, "weights_match")
    assert not found["passed"] and not row.passed
    assert row.value == "1 different: model.layers.1.mlp.down_proj.weight"
    assert "1 loaded weights differ" in found["notes"][0]


def test_predictions_that_are_not_finite_are_an_error_that_names_the_weight(
    inputs: dict[str, Output], tmp_path: Path
) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][0] = torch.nan

    with pytest.raises(InputError, match=r"(?s)not finite.*model\.norm\.weight"):
        judged({**inputs, "packed": altered(inputs, tmp_path / "altered", poison)}, tmp_path / "scratch")


def test_a_folder_that_does_not_load_is_an_error(inputs: dict[str, Output], tmp_path: Path) -> None:
    packed = inputs["packed"]
    (tmp_path / "cut").write_bytes(packed.files["model.safetensors"].read_bytes()[:-9])
    cut = Output(packed.meta, files={**packed.files, "model.safetensors": tmp_path / "cut"})
    with pytest.raises(InputError, match="does not load"):
        judged({**inputs, "packed": cut}, tmp_path / "scratch")


def test_no_uniform_that_fits_is_a_pass_and_a_note_and_one_that_was_not_measured_is_a_failure(
    inputs: dict[str, Output], tmp_path: Path
) -> None:
    alone = {port: value for port, value in inputs.items() if port not in ("uniform", "greedy")}
    plan = inputs["plan"].meta
    none_fits = judged({**alone, "plan": Output({**plan, "uniform": None})}, tmp_path / "a")
    assert none_fits["passed"] and gate(none_fits, "beats_uniform").value is None
    assert "no uniform format fits" in none_fits["notes"][0]
    assert none_fits["metrics"]["uniform"] is None and none_fits["contrasts"] == []
    unmeasured = judged(alone, tmp_path / "b")
    assert not gate(unmeasured, "beats_uniform").passed and "not measured" in unmeasured["notes"][0]


def test_an_evaluation_of_no_uniform_plan_is_that_of_the_original_and_counts_for_nothing(
    inputs: dict[str, Output], tmp_path: Path
) -> None:
    plan = inputs["plan"].meta
    none_fits = Output({**plan, "uniform": None, "bytes": {**plan["bytes"], "uniform": None}})
    found = judged({**inputs, "plan": none_fits}, tmp_path / "scratch")
    assert found["metrics"]["uniform"] is None and "no uniform format fits" in found["notes"][0]
    assert found["positions"] and {row["uniform"] for row in found["positions"]} == {None}


def test_a_domain_is_measured_as_the_verdict_is_with_what_there_is(
    inputs: dict[str, Output], meta: Mapping[str, Any], tmp_path: Path
) -> None:
    spec = Measure(step="measure", batch=4, bootstrap=200)
    for name, plan in (("with", inputs["plan"]), ("without", Output({**inputs["plan"].meta, "uniform": None}))):
        (tmp_path / name).mkdir()
        row = measure.run(spec, {**inputs, "plan": plan}, Env(scratch=tmp_path / name))["evaluation"].meta["domain"]
        assert (row["kl"], row["top1"]) == (meta["metrics"]["mixed"]["kl"], meta["metrics"]["mixed"]["top1"])
        assert row["original_ppl"] == meta["metrics"]["original"]["ppl"]
        assert row.get("uniform") == (meta["metrics"]["uniform"]["kl"] if name == "with" else None)


def test_a_baseline_whose_size_is_unknown_is_refused(inputs: dict[str, Output], tmp_path: Path) -> None:
    without = {port: value for port, value in inputs.items() if port != "plan"}
    with pytest.raises(InputError, match=r"(?s)size of the `allocated`.*wire the `plan` port"):
        judged(without, tmp_path / "scratch")


def test_loading_draws_nothing_and_leaves_stderr_alone(
    inputs: dict[str, Output], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sys.stderr
    load(folder_of(inputs["packed"].files, tmp_path), "cpu")
    assert sys.stderr is before
    assert capfd.readouterr() == ("", "")
    assert {p.name for p in tmp_path.iterdir()} == set(inputs["packed"].files)
    assert all(os.path.islink(p) for p in tmp_path.iterdir())

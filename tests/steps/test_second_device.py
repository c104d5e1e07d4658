"""Every step that computes, on a device whose tensors do not mix with the CPU's: the CPU's bytes, and on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerator import NAME, accelerator
from linears import one_of_each
from models import block_view, tiny_tokens, tiny_value
from packables import on_disk
from recorded import recorded_candidates
from selections import fmt, selection_of, units_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from schemas.artifact import Unit
from schemas.distill import Codes
from schemas.quantize import QuantizeUnit, Rounding
from steps.device import device_of
from steps.model.structure import embedding_unit, head_unit
from steps.quantize import unit as quantize
from steps.step import Env, Output, Value
from steps.table import STEPS

Chain = Callable[[str, Path], Mapping[str, Value]]
TOKENS = tiny_tokens(48, 16)
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
FORMATS = ("int3-g64", "int2-row-asym", "q4_0", "iq4_nl", "q2_k", "q3_k", "tq2_0", "int2+4-g64@2.5", "baq2.5-g128")
TRAINING: dict[str, Any] = {"tokens": 4 * 4 * 16, "batch": 4, "held_out": 12, "check_every": 2}
RATES: dict[str, Any] = {"codes": 3e-2, "scales": 0.01, "norms": 0.01}


def run(device: str, scratch: Path, step: str, inputs: Mapping[str, Value], **fields: Any) -> dict[str, Output]:
    """A step by its name, as a runner calls it."""
    row = next(each for each in STEPS if get_args(each.spec.model_fields["step"].annotation) == (step,))
    spec = row.spec.model_validate({"step": step, **fields})
    found: dict[str, Output] = import_module(row.module).run(spec, inputs, Env(device=device, scratch=scratch))
    return found


def check(chain: Chain, folder: Path) -> None:
    """The same bytes from the CPU and the second device; from a GPU, where there is one, twice the same."""
    with sdpa_kernel(SDPBackend.MATH):  # torch picks its fused attention for the CPU alone
        alone = found_by(chain, "cpu", folder / "cpu")
        with accelerator():
            assert found_by(chain, NAME, folder / NAME) == alone
    if torch.cuda.is_available():
        first, second = (found_by(chain, device_of("cuda"), folder / name) for name in ("first", "second"))
        assert first == second


def found_by(chain: Chain, device: str, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return plain(chain(device, folder))


def plain(results: Mapping[str, Value]) -> dict[str, Any]:
    """JSON facts and bytes, without the name of the device."""
    found: dict[str, Any] = {}
    for name, value in results.items():
        facts = {key: value.meta[key] for key in value.meta if key != "plan"}
        found[name] = {"meta": unnamed(facts), "tensors": {}, "children": plain(value.children)}
        for each, tensor in value.tensors.items():
            assert type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu", (name, each)
            content = tensor.detach().flatten().view(torch.uint8).numpy().tobytes()
            found[name]["tensors"][each] = (str(tensor.dtype), tuple(tensor.shape), sha256(content).hexdigest())
    return found


def unnamed(facts: Any) -> Any:
    if isinstance(facts, dict):
        return {name: unnamed(value) for name, value in facts.items() if name not in ("device", "speed")}
    return [unnamed(each) for each in facts] if isinstance(facts, list) else facts


def calibrated(model: Output, device: str, scratch: Path) -> dict[str, Output]:
    """Statistics by block."""
    found, carried = dict[str, Output](), dict[str, Output]()
    for k in range(model.meta["config"]["num_hidden_layers"]):
        inputs = {"model": block_view(model, k), "tokens": TOKENS, **carried}
        result = run(device, scratch, "calibrate", inputs, batch=4, ends=True)
        found[str(k)], carried = result["statistics"], {"hidden": result["hidden"]}
    return found


def ends_of(model: Output) -> list[Unit]:
    found = [of(model.meta["config"], model.meta["shapes"]) for of in (embedding_unit, head_unit)]
    return [unit for unit in found if unit is not None]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: there[here.long()],
        lambda here, there: here.index_add(0, there.long(), here),
        lambda here, there: torch.multinomial(here, 1, generator=torch.Generator()),
        lambda here, there: here.numpy(),
        lambda here, there: torch.zeros(2).copy_(here) + here,
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(mixed: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    with accelerator() as device:
        here, there = torch.ones(2, device=device), torch.zeros(2)
        assert here.device.type == device and (here[there.long()] + here.cpu().to(device)).tolist() == [2.0, 2.0]
        with pytest.raises((RuntimeError, TypeError), match=NAME):
            mixed(here, there)


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_statistics_and_candidates(family: str, tmp_path: Path) -> None:
    """Every family of formats; embedding, head and experts too."""
    model = tiny_value(family, **(WIDE if family == "llama" else {}))
    formats = FORMATS if family == "llama" else ("int3-g32",)

    def chain(device: str, scratch: Path) -> dict[str, Value]:
        statistics = calibrated(model, device, scratch)
        found: dict[str, Value] = dict(statistics)
        for unit in (*units_of(model)[::4], *ends_of(model)):
            about = Output({**model.meta, "unit": unit.model_dump(mode="json")}, model.tensors)
            for name in formats:
                spec = QuantizeUnit(format=fmt(name), rounding=Rounding(refits=1))
                inputs = {"model": about, "statistics": statistics[str(unit.block)]}
                item = quantize.run(spec, inputs, Env(device=device, scratch=scratch))
                found[f"{unit.name}/{name}"] = item["candidates"]
        return found

    check(chain, tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_every_metric(family: str, tmp_path: Path) -> None:
    model = tiny_value(family, num_hidden_layers=2)
    candidates = recorded_candidates(model, "int2-g32", "int4-g32")
    whole = ("fisher", "fisher_rows", "hutchinson", "lim", "output_error", "size_normalised", "weight_error", "zd")

    def chain(device: str, scratch: Path) -> dict[str, Value]:
        inputs: dict[str, Value] = {"model": model, "tokens": tiny_tokens(6, 16), "candidates": candidates}
        inputs |= run(device, scratch, "reference", inputs)
        found = {name: run(device, scratch, name, inputs)["scores"] for name in whole}
        probed = {
            name: run(device, scratch, "kl_probe", inputs | {"candidates": child}, batch=4)["scores"]
            for name, child in candidates.children.items()
        }
        found |= {"reference": inputs["reference"], "kl_probe": Output(children=probed)}
        names = [unit.name for unit in units_of(model)]
        neighbours = {name: ["int2-g32", "int4-g32"] for name in names}
        inputs["plan"] = Output({"plan": dict.fromkeys(names, "int2-g32"), "neighbours": neighbours})
        name = f"{names[1]}/int4-g32"
        around = inputs | {"selection": selection_of(model, "int2-g32")}
        around |= {"candidates": candidates.children[name], "scores": probed[name]}
        found["rescore"] = run(device, scratch, "rescore", around, batch=4)["scores"]
        return found | run(device, scratch, "pair_probe", inputs, formats=["int2-g32"])

    check(chain, tmp_path)


@pytest.mark.parametrize("codes", one_of_each(Codes), ids=lambda spec: spec.kind)
def test_training_of_the_whole_model(codes: Any, tmp_path: Path) -> None:
    """Every parametrisation on every family of formats, an optimizer each; gradients, moments and checks."""
    model = tiny_value(**WIDE)
    names = [unit.name for unit in units_of(model)]
    selection = selection_of(model, dict(zip(names, ("int2-g64", "int3-row-asym") * len(names), strict=False)))
    optimizer = {"kind": "sign"} if codes.kind == "offsets" else {"kind": "adam"}

    def chain(device: str, scratch: Path) -> dict[str, Value]:
        inputs = {"model": model, "selection": selection, "tokens": TOKENS}
        given = {**TRAINING, "codes": codes.model_dump(), "rates": RATES, "optimizer": optimizer}
        return dict(run(device, scratch, "distill", inputs, **given))

    check(chain, tmp_path)


def test_training_of_windows_of_blocks(tmp_path: Path) -> None:
    """With Fisher weights and a logits term: what enters was refined before, what should leave is the original's."""
    model = tiny_value("qwen2_moe", num_hidden_layers=2)
    selection = selection_of(model, "int2-g32")
    terms = [{"kind": "outputs", "fisher": True}, {"kind": "logits", "weight": 0.1}]

    def chain(device: str, scratch: Path) -> dict[str, Value]:
        inputs = {"model": model, "selection": selection, "tokens": TOKENS}
        given = {**TRAINING, "rates": {"codes": 3e-2, "scales": 0.01}, "objective": terms}
        return dict(run(device, scratch, "distill", inputs, **given, scope={"kind": "blocks", "width": 2, "stride": 1}))

    check(chain, tmp_path)


def test_training_of_a_streamed_block(tmp_path: Path) -> None:
    model = tiny_value()
    selection = selection_of(model, "int2-g32")
    first = Output(children={name: item for name, item in selection.children.items() if name.startswith("layers.0.")})

    def chain(device: str, scratch: Path) -> dict[str, Value]:
        inputs = {"model": block_view(model, 0), "selection": first, "tokens": TOKENS}
        given = {**TRAINING, "rates": {"codes": 3e-2, "scales": 0.01}}
        return dict(run(device, scratch, "reconstruct", inputs, **given))

    check(chain, tmp_path)


def test_codes_chosen_again_and_the_packed_file(tmp_path: Path) -> None:
    model = on_disk(tiny_value(hidden_size=64, intermediate_size=128, head_dim=16), tmp_path / "source")
    selection = selection_of(model, "int3-g32")

    def chain(device: str, scratch: Path) -> dict[str, Value]:
        inputs: dict[str, Value] = {"model": model, "selection": selection, "tokens": TOKENS}
        inputs |= run(device, scratch, "reference", inputs)
        inputs |= run(device, scratch, "recode", inputs, windows=24, held_out=12, batch=4, passes=20)
        inputs |= run(device, scratch, "evaluate", inputs, batch=4)
        inputs |= run(device, scratch, "pack", inputs)
        return {
            "recoded": inputs["selection"],
            "evaluation": inputs["evaluation"],
            "measured": run(device, scratch / "measured", "measure", inputs, bootstrap=100)["evaluation"],
            "written": run(device, scratch / "written", "generate", inputs, prompt=4, tokens=4)["generations"],
        }

    check(chain, tmp_path)

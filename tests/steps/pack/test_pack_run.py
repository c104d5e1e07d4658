"""A packed folder: exact size, deterministic bytes, what is in it, what plain transformers makes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from models import tiny_value
from packables import on_disk, random_selection
from safetensors.torch import load_file
from selections import fmt, modified_transformer

from schemas.errors import InputError
from schemas.pack import Pack, PackFormat
from steps.model.structure import units
from steps.pack import run as pack
from steps.pack.engines import refusals
from steps.pack.quantization_config import quantization_config
from steps.pack.sizes import file_bytes, linear_bytes, plan_linears
from steps.step import Env, Output

MIXED = ("int3-g32", "int2-row", "int4-g64-sym", "int5-row-sym", "int8-g128", "int6-g32", "int4-g64")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
CT: PackFormat = "compressed-tensors"
ODD = {"hidden_size": 40, "intermediate_size": 72, "head_dim": 10}


def packed(model: Output, selection: Output, scratch: Path) -> Output:
    scratch.mkdir()
    return pack.run(Pack(step="pack"), {"model": model, "selection": selection}, Env(scratch=scratch))["packed"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_predicted_bytes_are_the_files(tmp_path: Path, family: str, tied: bool) -> None:
    model = tiny_value(family, tied=tied, dtype=torch.bfloat16, **WIDE)
    selection = random_selection(model, MIXED)
    out = packed(model, selection, tmp_path / "out")
    plan = {unit: fmt(name) for unit, name in selection.meta["plan"].items()}
    shapes = {name: tuple(shape) for name, shape in model.meta["shapes"].items()}
    linears = plan_linears(plan, units(model.meta["config"], shapes))
    predicted = file_bytes("compressed-tensors", model.meta["config"], shapes, model.meta["dtypes"], linears)
    size = out.meta["bytes"]
    data = sum(t.numel() * t.element_size() for t in load_file(out.files["model.safetensors"]).values())
    assert predicted == size["predicted"] == size["actual"] == size["header"] + data
    assert size["actual"] == out.files["model.safetensors"].stat().st_size
    weights = sum(shapes[f"{name}.weight"][0] * shapes[f"{name}.weight"][1] for name in linears)
    stored = sum(linear_bytes("compressed-tensors", f, shapes[f"{n}.weight"]) for n, f in linears.items())  # type: ignore[arg-type]
    assert out.meta["bpw"]["linear"] == 8 * stored / weights
    assert out.meta["bpw"]["total"] == 8 * predicted / sum(t.numel() for t in model.tensors.values())


def test_the_folder_is_the_models_with_other_weights(tmp_path: Path) -> None:
    model = on_disk(tiny_value(dtype=torch.float16), tmp_path / "source")
    selection = random_selection(model, ["int4-g32"], dtype=torch.float16, norms=True)
    out = packed(model, selection, tmp_path / "out")
    for name in ("LICENSE", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        assert out.files[name].read_bytes() == model.files[name].read_bytes()
    assert set(out.files) == {*model.files, "model.safetensors", "bitsmith.json"}
    config = json.loads(out.files["config.json"].read_text())
    groups = config.pop("quantization_config")["config_groups"]
    assert config == model.meta["config"] and config["dtype"] == "float16"
    assert list(groups) == ["group_0"] and len(groups["group_0"]["targets"]) == 21
    tensors = load_file(out.files["model.safetensors"])
    norm = selection.children["norms"].tensors["model.norm.weight"]
    assert norm.dtype == torch.float32 and torch.equal(tensors["model.norm.weight"], norm.half())
    kept = [n for n in model.tensors if n in tensors and n != "model.norm.weight"]
    assert len(kept) == 8 and all(torch.equal(tensors[n], model.tensors[n]) for n in kept)
    manifest = json.loads(out.files["bitsmith.json"].read_text())
    assert manifest["formats"]["model.layers.0.mlp.up_proj"] == "int4-g32" and set(manifest["sha256"]) == set(tensors)


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = on_disk(tiny_value(tied=True), tmp_path / "source")
    selection = random_selection(model, ["int3-row", "int8-g32"], norms=True)
    first, second = (packed(model, selection, tmp_path / n) for n in ("a", "b"))
    assert first.meta == second.meta
    assert {n: p.read_bytes() for n, p in first.files.items()} == {n: p.read_bytes() for n, p in second.files.items()}


THIRD_PARTY = """
    import sys
    import torch
    from transformers import AutoModelForCausalLM
    for folder in sys.argv[2:]:
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            torch.save(model(torch.arange(1, 33).view(2, 16)).logits, folder + "/logits.pt")
    ours = sorted(n for n in sys.modules if n.split(".")[0] in ("schemas", "steps", "store", "pipelines", "ui"))
    print(f"ours: {ours}")
"""


def test_a_process_without_our_code_computes_with_exactly_our_weights(tmp_path: Path) -> None:
    """Oracle: transformers' own model with the dequantized weights put in by hand; fp32, so equal logits."""
    cases = {
        "mixed": tiny_value(tied=True, **WIDE),
        "untied": tiny_value(tied=False, **WIDE),
        "odd": tiny_value("qwen2", **ODD),
        "qwen3": tiny_value("qwen3", tied=True, **WIDE),
    }
    selections = {}
    for name, model in cases.items():
        formats = ("int2-row", "int3-row-sym", "int5-row") if name == "odd" else MIXED
        selections[name] = random_selection(model, formats, norms=True)
        packed(on_disk(model, tmp_path / f"{name}-source"), selections[name], tmp_path / name)
    command = [sys.executable, "-c", textwrap.dedent(THIRD_PARTY), "-", *(str(tmp_path / n) for n in cases)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ours: []"
    ids_NS = torch.arange(1, 33).view(2, 16)
    for name, model in cases.items():
        expected = modified_transformer(model, selections[name])(ids_NS).logits
        torch.testing.assert_close(torch.load(tmp_path / name / "logits.pt"), expected, rtol=0, atol=1e-5)


def test_one_group_per_stored_format_with_every_linear_in_exactly_one() -> None:
    linears = {"a": fmt("int4-g64"), "b": fmt("int3-row"), "c": fmt("int4-g64-sym"), "d": fmt("int4-g32")}
    config = quantization_config(linears)
    targets = [g["targets"] for g in config["config_groups"].values()]
    assert targets == [["b"], ["d"], ["a", "c"]] and config["ignore"] == ["lm_head"]
    weights = [g["weights"] for g in config["config_groups"].values()]
    assert [(w["num_bits"], w["strategy"], w["group_size"]) for w in weights] == [
        (3, "channel", None),
        (4, "group", 32),
        (4, "group", 64),
    ]
    assert all(w["symmetric"] and "actorder" not in w for w in weights)


def test_codes_chosen_in_order_of_activation_are_said_to_be() -> None:
    from compressed_tensors.quantization import QuantizationConfig

    linears = {"a": fmt("int4-g64"), "b": fmt("int4-g64"), "c": fmt("int3-row")}
    config = quantization_config(linears, {"b", "c"})
    groups = config["config_groups"].values()
    assert [(g["targets"], g["weights"].get("actorder")) for g in groups] == [
        (["c"], "static"),
        (["a"], None),
        (["b"], "static"),
    ]
    read = QuantizationConfig.model_validate(config)
    assert [g.weights.actorder for g in read.config_groups.values()] == ["static", None, "static"]


def test_what_would_not_load_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = tiny_value()
    with pytest.raises(InputError, match=r"(?s)int4-g32-asym.*use int4-g32"):
        packed(model, random_selection(model, ["int3-g32", "int4-g32-asym"]), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_refusals_name_the_unit_a_group_size_does_not_fit_and_foreign_configs() -> None:
    model = tiny_value(hidden_size=32, intermediate_size=96, head_dim=8)
    listed = units(model.meta["config"], model.meta["shapes"])
    assert refusals(CT, [fmt("int4-g32"), fmt("int4-row")], {"dtype": "float16"}, listed) == []
    (reason,) = refusals(CT, [fmt("int4-g64")], {}, listed)
    assert "64 does not divide 32 columns of model.layers.0.self_attn.q_proj" in reason
    assert "float64" in refusals(CT, [], {"torch_dtype": "float64"})[0]
    assert "already" in refusals(CT, [], {"quantization_config": {}})[0]


def test_a_selection_of_another_model_or_dtype_is_refused(tmp_path: Path) -> None:
    model, deeper = tiny_value(), tiny_value(num_hidden_layers=4)
    with pytest.raises(InputError, match=r"(?s)model lacks.*model\.layers\.3"):
        packed(model, random_selection(deeper, ["int4-g32"]), tmp_path / "a")
    half = tiny_value(dtype=torch.float16)
    with pytest.raises(InputError, match=r"(?s)wrong dtype.*bfloat16.*float16"):
        packed(half, random_selection(half, ["int4-g32"]), tmp_path / "b")
    stray = Output(children={"norms": Output(tensors={"model.nrom.weight": torch.ones(32)})})
    with pytest.raises(InputError, match=r"model\.nrom\.weight"):
        packed(model, stray, tmp_path / "c")


@dataclass
class Lent(Mapping[str, torch.Tensor]):
    """A lazy tensor mapping that notes, at each read, how many bytes lent by all mappings of one `live` are held."""

    tensors: Mapping[str, torch.Tensor]
    live: weakref.WeakSet[torch.Tensor]
    peaks: list[int]

    def __getitem__(self, name: str) -> torch.Tensor:
        lent = self.tensors[name].clone()
        self.live.add(lent)
        self.peaks.append(sum(t.numel() * t.element_size() for t in self.live))
        return lent

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_tensors_are_read_one_at_a_time_and_let_go(tmp_path: Path) -> None:
    model = tiny_value(num_hidden_layers=4, **WIDE)
    selection = random_selection(model, ["int4-g64"])
    live: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    peaks: list[int] = []
    lazy = Output(model.meta, Lent(model.tensors, live, peaks))
    children = {n: Output(c.meta, Lent(c.tensors, live, peaks)) for n, c in selection.children.items()}
    packed(lazy, Output(selection.meta, children=children), tmp_path / "out")
    largest = max(t.numel() * t.element_size() for t in model.tensors.values())
    assert max(peaks) <= 2 * largest < sum(t.numel() * t.element_size() for t in model.tensors.values()) / 4
    assert len(live) == 0


def test_a_source_index_is_left_behind(tmp_path: Path) -> None:
    model = on_disk(tiny_value(), tmp_path / "source")
    index = shutil.copy(model.files["LICENSE"], tmp_path / "source" / "model.safetensors.index.json")
    model = Output(model.meta, model.tensors, files={**model.files, "model.safetensors.index.json": Path(index)})
    assert (
        "model.safetensors.index.json" not in packed(model, random_selection(model, ["int4-g32"]), tmp_path / "o").files
    )

"""A packed folder that is loaded block by block measures, bit for bit, what it measures when it is loaded whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ggufs
import pytest
import torch
from models import MIXTURE, tiny_tokens, tiny_value
from packables import on_disk
from safetensors.torch import load_file, save_file

from schemas.artifact import Unit
from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.format import read_format
from schemas.pack import Engine, Pack, PackFormat
from schemas.verify import WHOLE_BYTES, Generate, Measure, Verify
from steps.calibrate import reference
from steps.model.structure import embedding_unit, head_unit, routers, units
from steps.pack import run as pack
from steps.quantize.qtensor import item_meta
from steps.step import Env, Output
from steps.verify import generate, measure, predictions
from steps.verify import run as verify
from steps.verify.load_packed import load
from steps.verify.loading import BY_BLOCKS, resolve

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 4}
MANY = ("int3-g32", "int2-row", "int4-g64-sym", "int5-row", "int8-g128")
SMALL = ("int3-g32", "int4-g32", "int8-row")
ASYMMETRIC = ("int4-g32-asym", "int4-row-asym", "int4-g64")
SPEC = Verify(step="verify", batch=2, bootstrap=100, load="blocks")


@dataclass(frozen=True)
class Case:
    """A packed model: how it is packed, which formats its units have in turn, which ends are packed, and its config."""

    pack: PackFormat
    formats: tuple[str, ...]
    family: str = "llama"
    tied: bool = True
    ends: bool = False
    target: Engine | None = None
    shard_bytes: int | None = None
    dtype: torch.dtype = torch.bfloat16
    skip: str = "nothing"
    """Units of this block stay as they are."""
    config: tuple[tuple[str, Any], ...] = ()
    """What differs from `WIDE`, or for a mixture or GGUF from what their own tests use."""


QWEN = (("use_sliding_window", True), ("sliding_window", 16), ("max_window_layers", 2))
CASES = {
    "mixed": Case("compressed-tensors", MANY),
    "mixed-untied-sharded": Case("compressed-tensors", MANY, tied=False, shard_bytes=100_000),
    "packed-head": Case("compressed-tensors", MANY, tied=False, ends=True),
    "a-block-unpacked": Case("compressed-tensors", MANY, skip="layers.2."),
    "asymmetric": Case("compressed-tensors", ASYMMETRIC, target="vllm", tied=False),
    "fp32": Case("compressed-tensors", MANY, dtype=torch.float32),
    "layer-types": Case("compressed-tensors", MANY, "qwen2", config=QWEN),
    "container": Case("bitsmith", (*MANY, *ASYMMETRIC, "q5_0"), shard_bytes=100_000),
    "container-ends": Case("bitsmith", MANY, ends=True),
    "container-untied-ends": Case("bitsmith", MANY, "qwen3", tied=False, ends=True),
    "container-a-block-unpacked": Case("bitsmith", MANY, skip="layers.0."),
    "mixtral": Case("compressed-tensors", ("int4-g32",), "mixtral"),
    "qwen2-moe": Case("compressed-tensors", ("int4-g32",), "qwen2_moe"),
    "container-mixtral": Case("bitsmith", SMALL, "mixtral", ends=True),
    "container-qwen2-moe": Case("bitsmith", SMALL, "qwen2_moe", ends=True),
    "container-qwen3-moe": Case("bitsmith", SMALL, "qwen3_moe", tied=False),
}  # fmt: skip
GGUF = {
    "gguf": Case("gguf", ("q4_k", "q6_k", "int8-g64", "q8_0"), tied=False),
    "gguf-tied": Case("gguf", ("q3_k", "int4-g128"), "mistral", ends=True),
    "gguf-qwen3": Case("gguf", ("q5_k", "tq1_0"), "qwen3"),
    "gguf-llama3": Case("gguf", ("q4_0", "iq4_nl"), config=(("rope_parameters", {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}),)),
}  # fmt: skip


def chosen(case: Case, model: Output) -> Output:
    """Every unit in one of the case's formats, in turn, with random codes; a format that GGUF alone has as it is."""
    config, shapes = model.meta["config"], model.meta["shapes"]
    found = [u for u in units(config, shapes) if not u.name.startswith(case.skip)]
    if case.ends:
        head = head_unit(config, shapes)
        found += [head] if head is not None else []
        found += [] if case.pack == "compressed-tensors" else [embedding_unit(config, shapes), *routers(config, shapes)]
    formats = {u.name: case.formats[i % len(case.formats)] for i, u in enumerate(found)}
    return Output({"plan": formats}, children={u.name: item(u, formats[u.name], i) for i, u in enumerate(found)})


def item(unit: Unit, name: str, seed: int) -> Output:
    form, pairs = read_format(name), enumerate(zip(unit.members, unit.shapes, strict=True))
    parts = [ggufs.quantized(member, form, shape, 100 * seed + j) for j, (member, shape) in pairs]
    members = {q.name: {"shape": list(q.shape), "loss": 0.0, "damping": 0.01} for q in parts}
    return Output(item_meta(unit.name, form, members), {key: t for q in parts for key, t in q.to_tensors().items()})


def build(case: Case, folder: Path) -> dict[str, Output]:
    """What a verify node is handed, without baselines."""
    changes = dict(case.config)
    if case.pack == "gguf":
        model = ggufs.model_on_disk(folder / "source", case.family, tied=case.tied, **changes)
    else:
        changes = changes if case.family in MIXTURE else WIDE | changes
        model = on_disk(tiny_value(case.family, tied=case.tied, dtype=case.dtype, **changes), folder / "source")
    inputs = {"model": model, "selection": chosen(case, model), "tokens": tiny_tokens(5, 12, documents=3)}
    (folder / "packed").mkdir()
    spec = Pack(step="pack", format=case.pack, target=case.target, shard_bytes=case.shard_bytes)
    inputs |= pack.run(spec, inputs, Env(scratch=folder / "packed"))
    return inputs | reference.run(Reference(step="reference", batch=2), inputs, Env())


def judged(inputs: dict[str, Output], scratch: Path, **changes: Any) -> dict[str, Any]:
    scratch.mkdir()
    meta = dict(verify.run(SPEC.model_copy(update=changes), inputs, Env(scratch=scratch))["verdict"].meta)
    assert [p.name for p in scratch.iterdir()] == ["packed"]
    return meta


SLOW = ("fp32", "container", "container-qwen2-moe", "container-qwen3-moe", "gguf-qwen3", "gguf-llama3")


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, c in {**CASES, **GGUF}.items()]
)
def test_by_blocks_gives_bit_for_bit_the_verdict_of_the_whole(case: Case, tmp_path: Path) -> None:
    inputs = build(case, tmp_path)
    whole, blocks = (judged(inputs, tmp_path / load, load=load) for load in ("whole", "blocks"))
    assert (whole.pop("loaded"), blocks.pop("loaded")) == ("whole", "blocks")
    assert whole.pop("speed")["decode_tokens_per_second"] > 0 and blocks.pop("speed") is None
    assert blocks == whole and blocks["weights"]["different"] == []
    assert blocks["weights"]["compared"] == len(inputs["model"].meta["dtypes"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    return build(CASES["mixed"], tmp_path_factory.mktemp("build"))


def test_no_more_than_one_block_is_ever_loaded(
    inputs: dict[str, Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    def watched(folder: Path, device: str) -> Any:
        config = json.loads((folder / "config.json").read_text())
        sizes.append((config["num_hidden_layers"], config["vocab_size"]))
        return load(folder, device)

    monkeypatch.setattr(predictions, "load", watched)
    judged(inputs, tmp_path / "scratch")
    assert sizes == [(0, 97), (1, 1), (1, 1), (1, 1), (1, 1), (0, 97)]


def altered(inputs: dict[str, Output], folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Output:
    """The packed value with some tensors changed in its file."""
    packed = inputs["packed"]
    tensors = load_file(packed.files["model.safetensors"])
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "weights", metadata={"format": "pt"})
    return Output(packed.meta, files={**packed.files, "model.safetensors": folder / "weights"})


def damage(tensors: dict[str, torch.Tensor]) -> None:
    """In the first block, in the last, and outside of all."""
    tensors["model.layers.0.self_attn.o_proj.weight_packed"][0, 0] ^= 1
    tensors["model.layers.3.mlp.down_proj.weight_scale"][3, 0] *= 2
    del tensors["model.layers.3.input_layernorm.weight"]
    tensors["model.norm.weight"][0] += 0.5


def test_wrong_weights_are_named_as_they_are_of_the_whole(inputs: dict[str, Output], tmp_path: Path) -> None:
    wrong = {**inputs, "packed": altered(inputs, tmp_path / "altered", damage)}
    found = judged(wrong, tmp_path / "blocks")
    assert found["weights"] == judged(wrong, tmp_path / "whole", load="whole")["weights"]
    assert set(found["weights"]["different"]) == {
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.3.mlp.down_proj.weight",
        "model.layers.3.input_layernorm.weight",
        "model.norm.weight",
    }
    assert not found["passed"]


def test_predictions_that_are_not_finite_are_an_error_that_names_the_weight(
    inputs: dict[str, Output], tmp_path: Path
) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.input_layernorm.weight"][0] = torch.nan

    with pytest.raises(InputError, match=r"(?s)not finite.*model\.layers\.1\.input_layernorm"):
        judged({**inputs, "packed": altered(inputs, tmp_path / "altered", poison)}, tmp_path / "scratch")


def test_a_file_that_is_cut_short_is_an_error(inputs: dict[str, Output], tmp_path: Path) -> None:
    packed = inputs["packed"]
    (tmp_path / "cut").write_bytes(packed.files["model.safetensors"].read_bytes()[:-9])
    cut = Output(packed.meta, files={**packed.files, "model.safetensors": tmp_path / "cut"})
    with pytest.raises(InputError, match="cut short"):
        judged({**inputs, "packed": cut}, tmp_path / "scratch")


def test_parts_that_load_in_different_dtypes_are_refused(inputs: dict[str, Output], tmp_path: Path) -> None:
    """Without a dtype in config.json the loader takes that of the first weights it meets, which parts may differ in."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()

    packed = altered(inputs, tmp_path / "altered", widen)
    config = json.loads(packed.files["config.json"].read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    packed = Output(packed.meta, files={**packed.files, "config.json": tmp_path / "config.json"})
    with pytest.raises(InputError, match=r"(?s)different dtypes.*load: whole"):
        judged({**inputs, "packed": packed}, tmp_path / "scratch")


def test_a_domain_is_measured_alike_in_both_ways(inputs: dict[str, Output], tmp_path: Path) -> None:
    found = []
    for how in ("whole", "blocks"):
        (tmp_path / how).mkdir()
        spec = Measure.model_validate({"step": "measure", "batch": 2, "bootstrap": 100, "load": how})
        found.append(measure.run(spec, inputs, Env(scratch=tmp_path / how))["evaluation"].meta)
    assert found[0] == found[1] and found[0]["domain"]["tokens"] > 0


def test_nothing_is_written_by_blocks_and_that_is_said(inputs: dict[str, Output], tmp_path: Path) -> None:
    spec = Generate(step="generate", load="blocks")
    meta = generate.run(spec, inputs, Env(scratch=tmp_path))["generations"].meta
    assert meta == {"generations": [], "notes": [f"nothing was generated, {BY_BLOCKS}"]}


def test_auto_goes_by_the_size_of_the_model_alone() -> None:
    row = {"w": (WHOLE_BYTES // 4, 1)}
    assert resolve("auto", WHOLE_BYTES, row) == "whole"
    assert resolve("auto", WHOLE_BYTES, {**row, "b": (1,)}) == "blocks"
    assert resolve("whole", 1, row) == "whole" and resolve("blocks", WHOLE_BYTES, {}) == "blocks"

"""Our own container: what transformers makes of it with the plug-in, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_value
from packables import on_disk, random_quantized, random_selection
from safetensors.torch import load_file, save_file
from selections import fmt, modified_transformer

from schemas.errors import InputError
from schemas.pack import Pack
from steps.pack import run as pack
from steps.quantize.qtensor import item_meta
from steps.step import Env, Output

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
EVERY_KIND = (
    "int3-g32",
    "int2-row",
    "int4-g64-asym",
    "int5-row-sym",
    "int8-g128",
    "int6-g32-asym",
    "q4_0",
    "q8_0",
    "int2+4-g32@3",
    "baq4-g64",
)
IDS_NS = torch.arange(1, 33).view(2, 16)


def packed(model: Output, selection: Output, scratch: Path, **fields: Any) -> Output:
    scratch.mkdir()
    spec = Pack(step="pack", format="bitsmith", **fields)
    return pack.run(spec, {"model": model, "selection": selection}, Env(scratch=scratch))["packed"]


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    import steps.pack.plugin  # noqa: F401

    return AutoModelForCausalLM.from_pretrained(folder)


def with_embedding(model: Output, selection: Output, form: str) -> Output:
    """The selection with the embedding table quantized, too."""
    name = "model.embed_tokens"
    shape = tuple(model.meta["shapes"][f"{name}.weight"])
    q = random_quantized(name, fmt(form), (shape[0], shape[1]), 5)  # type: ignore[arg-type]
    meta = item_meta("embedding", fmt(form), {name: {"shape": list(shape)}})
    return Output(selection.meta, children={**selection.children, "embedding": Output(meta, q.to_tensors())})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shard_bytes", [None, 60_000])
def test_transformers_computes_with_exactly_our_weights(tmp_path: Path, tied: bool, shard_bytes: int | None) -> None:
    """Oracle: transformers' own model with the dequantized weights put in by hand; fp32, so equal logits."""
    model = on_disk(tiny_value("qwen2", tied=tied, **WIDE), tmp_path / "source")
    selection = with_embedding(model, random_selection(model, EVERY_KIND, norms=True), "int4-g32")
    out = packed(model, selection, tmp_path / "out", shard_bytes=shard_bytes)
    assert (len(out.meta["weights"]) > 1) == (shard_bytes is not None)
    assert out.meta["bytes"]["predicted"] == out.meta["bytes"]["actual"]
    with torch.no_grad():
        found = load(tmp_path / "out")(IDS_NS).logits
        expected = modified_transformer(model, selection)(IDS_NS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_16_bit_model_keeps_packed_tensors_as_they_are_stored(tmp_path: Path) -> None:
    model = on_disk(tiny_value(dtype=torch.float16, **WIDE), tmp_path / "source")
    selection = random_selection(model, ["int4-g32", "int3-row-asym"], dtype=torch.float16)
    out = packed(model, selection, tmp_path / "out")
    loaded = load(tmp_path / "out")
    stored = load_file(out.files["model.safetensors"])
    held = {**dict(loaded.named_buffers()), **dict(loaded.named_parameters())}
    assert all(held[n].dtype == t.dtype and torch.equal(held[n], t) for n, t in stored.items())
    assert loaded.dtype == torch.float16 and loaded(IDS_NS).logits.dtype == torch.float16


def altered(source: Path, target: Path, change: Any) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


def flip(folder: Path) -> None:
    path = next(p for p in sorted(folder.glob("model-*.safetensors")) if any("codes" in n for n in load_file(p)))
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith(".codes"))
    tensors[name][0, 0] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})


def remove_a_shard(folder: Path) -> None:
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()


def newer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] = 2
    (folder / "config.json").write_text(json.dumps(config))


def test_an_altered_or_newer_folder_is_one_error(tmp_path: Path) -> None:
    model = on_disk(tiny_value(**WIDE), tmp_path / "source")
    packed(model, random_selection(model, EVERY_KIND), tmp_path / "out", shard_bytes=60_000)
    with pytest.raises(InputError, match=r"(?s)not what was built.*codes.*sha256"):
        load(altered(tmp_path / "out", tmp_path / "flipped", flip))
    with pytest.raises(InputError, match=r"(?s)newer Bitsmith.*version 2.*version 1"):
        load(altered(tmp_path / "out", tmp_path / "newer", newer))
    with pytest.raises(OSError, match="safetensors"):
        load(altered(tmp_path / "out", tmp_path / "short", remove_a_shard))

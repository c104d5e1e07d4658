"""Every way into a packed folder gives, weight for weight, what was packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import tiny_value
from packables import on_disk, random_selection

from schemas.errors import InputError
from schemas.pack import Pack, PackFormat
from steps.pack import run as pack
from steps.step import Env, Output
from steps.verify.load_packed import different_weights, in_float32, load
from steps.verify.loaders import load_own

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
MIXED = ("int3-g32", "int2-row", "int4-g64-sym", "int5-row", "int8-g128")
ASYMMETRIC = ("int4-g32-asym", "int4-row-asym", "int4-g64")
IDS_NS = torch.arange(1, 33).view(2, 16)


def packed(
    folder: Path, form: PackFormat, formats: tuple[str, ...], dtype: torch.dtype = torch.bfloat16, shards: int = 80_000
) -> tuple[Output, Output, Path]:
    """Model, selection and packed folder. Asymmetric formats are for vLLM alone, which takes them at 4 bits."""
    model = on_disk(tiny_value(tied=True, dtype=dtype, **WIDE), folder / "source")
    selection = random_selection(model, formats, norms=True)
    target = "vllm" if form == "compressed-tensors" and formats is ASYMMETRIC else None
    spec = Pack(step="pack", format=form, shard_bytes=shards, target=target)
    (folder / "packed").mkdir()
    pack.run(spec, {"model": model, "selection": selection}, Env(scratch=folder / "packed"))
    return model, selection, folder / "packed"


@pytest.mark.parametrize(
    ("form", "formats"),
    [("compressed-tensors", MIXED), ("compressed-tensors", ASYMMETRIC), ("bitsmith", (*MIXED, *ASYMMETRIC, "q5_0"))],
)
def test_the_engines_loader_and_our_own_give_the_packed_weights(
    tmp_path: Path, form: PackFormat, formats: tuple[str, ...]
) -> None:
    model, selection, folder = packed(tmp_path, form, formats)
    logits = []
    for loaded in (load(folder, "cpu"), load_own(folder).eval()):
        assert loaded.dtype == torch.bfloat16
        assert different_weights(loaded, model, selection) == []
        wide = in_float32(loaded)
        assert different_weights(wide, model, selection) == [] or form == "compressed-tensors"
        with torch.no_grad():
            logits.append(wide(IDS_NS).logits)
    assert logits[0].dtype == torch.float32
    if form == "bitsmith":  # compressed-tensors rounds its weights to bf16 when it unpacks them, we do not
        torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    _, _, folder = packed(tmp_path, "bitsmith", ("int4-g32",))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"model_type": "llama"', '"model_type": "qwen3"'))
    with pytest.raises(InputError, match=r"(?s)not of this architecture.*missing.*norm"):
        load_own(folder)

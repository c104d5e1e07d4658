"""Ways into a packed folder where `from_pretrained` has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError
from steps.model.experts import joined
from steps.model.stream import DERIVED
from steps.pack.modules import PackedEmbedding
from steps.pack.quantization_config import targeted
from steps.pack.read import PackedFolder
from steps.pack.replace import put_packed
from steps.pack.sizes import model_dtype
from steps.step import Value


def skeleton(config: dict[str, Any]) -> Any:
    """transformers' own model on the meta device in the config's dtype, with buffers that no checkpoint stores."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = {key: value for key, value in config.items() if key != "quantization_config"}
    built = CONFIG_MAPPING[config["model_type"]].from_dict(fields)
    dtype: torch.dtype = getattr(torch, model_dtype(config) or "float32")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built, dtype=dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model


def load_own(folder: Path) -> Any:
    """Any packed folder through our own reader: matrices stay packed, in modules that dequantize when used."""
    packed = PackedFolder(folder)
    model = skeleton(dict(packed.config))
    dtype = model.dtype
    read = {name: packed.matrix(name) for name in packed.linears}
    modules = put_packed(model, {name: (q.format, q.shape) for name, q in read.items()})
    for name, module in modules.items():
        stored = {full.removeprefix(f"{name}."): tensor for full, tensor in read[name].to_tensors().items()}
        module.load_state_dict(stored, strict=False, assign=True)
        if isinstance(module, PackedEmbedding):
            module.like = torch.empty(0, dtype=dtype)
    state = {name: packed.tensor(name).to(dtype) for name in packed.plain}
    return _filled(model, joined(state), folder)


def load_decompressed(folder: Path) -> Any:
    """A compressed-tensors folder through that library's own decompressor, matrix by matrix (0.20.0).

    Packed zero points come out right this way; `from_pretrained` compares them with the unpacked shape and refuses.
    """
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    packed = PackedFolder(folder)
    state = {name: packed.tensor(name) for name in packed.plain}
    for group in packed.config["quantization_config"]["config_groups"].values():
        scheme = QuantizationScheme(targets=group["targets"], weights=QuantizationArgs(**group["weights"]))
        for name in sorted(targeted(group["targets"], packed.linears)):
            stored = {e.name.removeprefix(f"{name}."): packed.tensor(e.name) for e in packed.stored(name)}
            state[f"{name}.weight"] = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    model = skeleton(dict(packed.config))
    return _filled(model, joined({name: tensor.to(model.dtype) for name, tensor in state.items()}), folder)


def load_original(model: Value) -> Any:
    """The original as transformers' own model, every parameter in its stored dtype."""
    state = {name: model.tensors[name] for name in model.meta["shapes"] if not name.endswith(DERIVED)}
    return _filled(skeleton(dict(model.meta["config"])), joined(state), str(model.meta.get("name", "model"))).eval()


def _filled(model: Any, state: dict[str, torch.Tensor], folder: Path | str) -> Any:
    """Every parameter from `state`, the tied head from its embedding; InputError for one that is left empty."""
    _, unexpected = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.device.type == "meta"]
    if left or unexpected:
        raise InputError(
            "the weights are not of this architecture",
            where=str(folder),
            got=f"{len(left)} missing, {len(unexpected)} unknown: {', '.join([*left, *unexpected][:3])}",
            wanted="exactly the model's parameters",
            fix="build it again",
        )
    return model

"""Random selections that reach every corner of a grid, and tiny models with the files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from models import write_model
from selections import fmt, units_of

from schemas.format import Format, Ggml, Mixed, PerColumn
from steps.quantize.qtensor import QuantizedTensor, item_meta
from steps.quantize.tensors.affine import AffineTensor
from steps.quantize.tensors.ggml import GgmlTensor
from steps.quantize.tensors.mixed import MixedTensor
from steps.step import Output


def random_quantized(
    name: str, form: Format, shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.bfloat16
) -> QuantizedTensor:
    """Codes over the whole grid, ends included; scales of either sign where the format has them."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(form, Ggml):
        return _random_blocks(name, form, shape, generator)
    if isinstance(form, Mixed | PerColumn):
        return _random_widths(name, form, shape, generator, dtype)
    asymmetric = form.symmetry == "asymmetric"
    low = 0 if asymmetric else -(1 << (form.bits - 1))
    codes_OI = torch.randint(low, low + (1 << form.bits), shape, generator=generator)
    codes_OI[0, 0], codes_OI[-1, -1] = low, low + (1 << form.bits) - 1
    groups = shape[1] // form.columns(shape[1])
    scale_OG = 0.3 / (1 << form.bits) * (1 + torch.rand(shape[0], groups, generator=generator))
    if form.symmetry == "signed":
        scale_OG *= torch.randint(0, 2, scale_OG.shape, generator=generator) * 2 - 1
    zero_OG = torch.randint(0, 1 << form.bits, scale_OG.shape, generator=generator).to(torch.uint8)
    codes_OI = codes_OI.to(torch.uint8 if asymmetric else torch.int8)
    return AffineTensor(name, form, codes_OI, scale_OG.to(dtype), zero_OG if asymmetric else None)


def _random_blocks(name: str, form: Ggml, shape: tuple[int, int], generator: torch.Generator) -> GgmlTensor:
    """Any codes, for the types whose blocks begin with an fp16 scale (q4_0, q5_0, q8_0, iq4_nl)."""
    blocks = shape[1] // form.block.weights
    blocks_OGB = torch.randint(0, 256, (shape[0], blocks, form.block.bytes), generator=generator).to(torch.uint8)
    scale_OG = 0.3 / 2**form.bits * (1 + torch.rand(shape[0], blocks, generator=generator))
    blocks_OGB[..., :2] = scale_OG.half()[..., None].view(torch.uint8)
    return GgmlTensor(name, form, blocks_OGB.flatten(1))


def _random_widths(
    name: str, form: Mixed | PerColumn, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype
) -> MixedTensor:
    """Widths in any order that add up to what the format keeps, codes over each one's whole grid."""
    pieces = form.pieces(shape[1])
    if isinstance(form, Mixed):
        bits_K = torch.full((pieces,), form.low)
        bits_K[torch.randperm(pieces, generator=generator)[: form.high_groups(shape[1])]] = form.high
    else:
        bits_K = torch.full((pieces,), 2)
        wide = (form.row_bits(shape[1]) - 2 * pieces) // 6
        bits_K[torch.randperm(pieces, generator=generator)[:wide]] = 8
    half_I = 2.0 ** (bits_K.repeat_interleave(shape[1] // pieces) - 1)
    codes_OI = ((torch.rand(shape, generator=generator) * 2 - 1) * half_I).floor().to(torch.int8)
    scale_OG = 0.03 * (torch.rand(shape[0], shape[1] // form.columns(shape[1]), generator=generator) - 0.5)
    return MixedTensor(name, form, codes_OI, scale_OG.to(dtype), bits_K.to(torch.uint8))


def random_selection(
    model: Output,
    formats: Sequence[str],
    seed: int = 0,
    *,
    norms: bool = False,
    damping: float = 0.01,
    dtype: torch.dtype = torch.bfloat16,
) -> Output:
    """Every unit in one of `formats`, in turn; with `norms`, the final norm is replaced too, by an fp32 tensor."""
    children: dict[str, Output] = {}
    plan = {}
    for i, unit in enumerate(units_of(model)):
        form = fmt(formats[i % len(formats)])
        plan[unit.name] = form.name
        pairs = zip(unit.members, unit.shapes, strict=True)
        parts = [random_quantized(m, form, shape, seed + 100 * i + j, dtype) for j, (m, shape) in enumerate(pairs)]
        members = {q.name: {"shape": list(q.shape), "loss": 0.0, "damping": damping} for q in parts}
        tensors = {name: t for q in parts for name, t in q.to_tensors().items()}
        children[unit.name] = Output(meta=item_meta(unit.name, form, members), tensors=tensors)
    if norms:
        norm_D = model.tensors["model.norm.weight"].float()
        children["norms"] = Output(tensors={"model.norm.weight": 1.5 * norm_D + 1e-4})
    return Output(meta={"plan": plan}, children=children)


def on_disk(model: Output, folder: Path) -> Output:
    """The same model with the files of its folder, weight shards excepted, as a port of type model has them."""
    write_model(folder, model)
    (folder / "LICENSE").write_text("as is\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    files = {p.name: p for p in sorted(folder.iterdir()) if p.suffix != ".safetensors"}
    return Output(model.meta, model.tensors, model.children, files)

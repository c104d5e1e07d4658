"""Candidates and selections of a tiny model, without calibration: by plain rounding, or by the solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from schemas.artifact import Unit, item_name
from schemas.format import Format, read_format
from schemas.quantize import QuantizeUnit, Rounding
from steps.model.structure import units
from steps.quantize import unit as quantize
from steps.quantize.qtensor import QuantizedTensor, from_value, item_meta
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Env, Output


def fmt(name: str) -> Format:
    """A format by its short name."""
    return read_format(name)


def rounded(name: str, W_OI: torch.Tensor, form: Format, scale_dtype: torch.dtype = torch.bfloat16) -> QuantizedTensor:
    """Round to nearest on a grid that covers each group's range."""
    W_OGJ = W_OI.float().view(W_OI.shape[0], -1, form.columns(W_OI.shape[1]))
    if form.symmetry == "asymmetric":
        low_OG, high_OG = W_OGJ.amin(-1).clamp(max=0), W_OGJ.amax(-1).clamp(min=0)
        scale_OG = ((high_OG - low_OG) / (2**form.bits - 1)).to(scale_dtype)
        zero_OG = (-low_OG / scale_OG.float()).round().clamp(0, 2**form.bits - 1)
        codes = (W_OGJ / scale_OG.float()[..., None] + zero_OG[..., None]).round().clamp(0, 2**form.bits - 1)
        return AffineTensor(name, form, codes.flatten(1).to(torch.uint8), scale_OG, zero_OG.to(torch.uint8))
    half = 2 ** (form.bits - 1)
    scale_OG = (W_OGJ.abs().amax(-1) / (half - 1)).to(scale_dtype)
    codes = (W_OGJ / scale_OG.float()[..., None]).round().clamp(-half, half - 1)
    return AffineTensor(name, form, codes.flatten(1).to(torch.int8), scale_OG)


def item(model: Output, unit: Unit, form: Format) -> Output:
    """One (unit, format) item."""
    found = [rounded(m, model.tensors[f"{m}.weight"], form) for m in unit.members]
    tensors = {name: tensor for q in found for name, tensor in q.to_tensors().items()}
    members = {q.name: {"shape": list(q.shape), "loss": 0.0, "damping": 0.0} for q in found}
    return Output(item_meta(unit.name, form, members), tensors)


def units_of(model: Output) -> list[Unit]:
    """Units of a model Value."""
    return units(model.meta["config"], model.meta["shapes"])


def candidates_of(model: Output, *names: str) -> Output:
    """Every unit in every format."""
    children = {item_name(u.name, name): item(model, u, fmt(name)) for u in units_of(model) for name in names}
    return Output(children=children)


def selection_of(model: Output, names: str | Mapping[str, str]) -> Output:
    """Every unit in one format, or in the one that the mapping says."""
    plan = {u.name: names if isinstance(names, str) else names[u.name] for u in units_of(model)}
    return Output({"plan": plan}, children={u.name: item(model, u, fmt(plan[u.name])) for u in units_of(model)})


def solved_selection(model: Output, names: Sequence[str]) -> Output:
    """Every unit in one of the formats, in turn, by the quantize step's own solver on inputs that are all alike."""
    rounding, children, plan = Rounding(refits=1), dict[str, Output](), dict[str, str]()
    for i, unit in enumerate(units_of(model)):
        pairs = zip(unit.statistics, unit.shapes, strict=True)
        statistics = Output(tensors={f"{name}.hessian": torch.eye(columns) for name, (_, columns) in pairs})
        about = Output({**model.meta, "unit": unit.model_dump(mode="json")}, model.tensors)
        spec = QuantizeUnit(format=fmt(names[i % len(names)]), rounding=rounding)
        found = quantize.run(spec, {"model": about, "statistics": statistics}, Env())["candidates"]
        children[unit.name], plan[unit.name] = found, spec.format.name
    return Output({"plan": plan}, children=children)


def representable(model: Output, selection: Output) -> Output:
    """The model whose linears are exactly what the selection dequantizes to, in fp32."""
    tensors = {name: tensor.float() for name, tensor in model.tensors.items()}
    for child in selection.children.values():
        for member in child.meta["members"]:
            tensors[f"{member}.weight"] = from_value(child, member).dequantize()
    return Output({**model.meta, "dtypes": dict.fromkeys(tensors, "float32")}, tensors)


def modified_transformer(model: Output, selection: Output) -> torch.nn.Module:
    """transformers' own model with a selection's (or any children's) weights and norms loaded into it."""
    from models import as_loaded, tiny_transformer

    transformer: torch.nn.Module = tiny_transformer(model.meta["config"])
    state = {name: tensor.float() for name, tensor in model.tensors.items()}
    for unit, child in selection.children.items():
        if unit == "norms":
            state |= {name: tensor.float() for name, tensor in child.tensors.items()}
            continue
        for member in child.meta["members"]:
            state[f"{member}.weight"] = from_value(child, member).dequantize()
    transformer.load_state_dict(as_loaded(state, model.meta["config"]["model_type"]), strict=False)
    return transformer

"""Write a selection and everything around it as one folder that plain transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError
from schemas.pack import Pack
from schemas.quantize import Format
from steps.model.overlay import NORMS
from steps.pack.compressed_tensors import file_tensors
from steps.pack.quantization_config import check_accepted, quantization_config
from steps.pack.safetensors_writer import SafetensorsWriter
from steps.pack.sizes import FILE_METADATA, file_bytes, file_entries, linear_bytes, scale_dtype_name, weights_of
from steps.quantize.qtensor import QuantizedTensor
from steps.step import Env, Output, Value

WEIGHTS = "model.safetensors"
MANIFEST = "bitsmith.json"


@dataclass(frozen=True)
class Parts:
    """What goes into the weights file: facts of the model, the format and the selection item of each linear."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    linears: Mapping[str, Format]
    items: Mapping[str, Value]
    overrides: Mapping[str, torch.Tensor]


def parts_of(model: Value, selection: Value) -> Parts:
    """Lay a selection beside its model; InputError when they do not belong together."""
    shapes = {name: tuple(shape) for name, shape in model.meta["shapes"].items()}
    items = {
        member: item for unit, item in selection.children.items() if unit != NORMS for member in item.meta["members"]
    }
    order = [name.removesuffix(".weight") for name in shapes]
    linears = {m: Format.model_validate(items[m].meta["format"]) for m in order if m in items}
    overrides = selection.children[NORMS].tensors if NORMS in selection.children else {}
    for name in (*(f"{m}.weight" for m in items), *overrides):
        if name not in shapes:
            raise InputError("the selection has a tensor that the model lacks", where=name, fix="rebuild the selection")
    return Parts(model.meta["config"], shapes, model.meta["dtypes"], linears, items, overrides)


def run(spec: Pack, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """Pack `selection` into copies of the files of `model`; meta has bytes and true bits per weight."""
    model = inputs["model"]
    parts = parts_of(model, inputs["selection"])
    check_accepted(sorted(set(parts.linears.values()), key=lambda f: f.name), parts.config, "pack")
    files = {name: _copy(path, env.scratch / name) for name, path in model.files.items() if not _replaced(name)}
    files["config.json"] = _write_json(env.scratch / "config.json", packed_config(parts))
    files[WEIGHTS] = env.scratch / WEIGHTS
    header, digests = write_weights(files[WEIGHTS], parts, model, env)
    size = {
        "predicted": file_bytes(spec.format, parts.config, parts.shapes, parts.dtypes, parts.linears),
        "actual": files[WEIGHTS].stat().st_size,
        "header": header,
    }
    meta = {"bytes": size, "weights": [WEIGHTS], "bpw": bits_per_weight(spec, parts, size["actual"])}
    formats = {name: fmt.name for name, fmt in parts.linears.items()}
    files[MANIFEST] = _write_json(env.scratch / MANIFEST, {**meta, "formats": formats, "sha256": digests})
    return {"packed": Output(meta=meta, files=files)}


def write_weights(path: Path, parts: Parts, model: Value, env: Env) -> tuple[int, dict[str, str]]:
    """Stream every tensor into `path`; the header's size and each tensor's sha256, in file order of names."""
    entries = file_entries(parts.config, parts.shapes, parts.dtypes, parts.linears)
    with SafetensorsWriter(path, entries, FILE_METADATA) as writer:
        for done, (name, stored) in enumerate(parts.dtypes.items()):
            env.progress(done, len(parts.dtypes), name)
            linear = name.removesuffix(".weight")
            if linear in parts.linears:
                for full_name, tensor in file_tensors(quantized(parts, linear)).items():
                    writer.write(full_name, tensor)
            else:
                writer.write(name, plain(parts, model, name, stored))
    return writer.header_bytes, dict(sorted(writer.digests.items()))


def quantized(parts: Parts, linear: str) -> QuantizedTensor:
    """The selected QuantizedTensor of one linear; InputError when its scales are not in the dtype of this file."""
    q = QuantizedTensor.from_value(parts.items[linear], linear)
    wanted = scale_dtype_name(parts.config)
    if str(q.scale_OG.dtype) != f"torch.{wanted}":
        raise InputError("scales have the wrong dtype", where=linear, got=q.scale_OG.dtype, wanted=wanted)
    return q


def plain(parts: Parts, model: Value, name: str, stored: str) -> torch.Tensor:
    """A parameter that is not quantized: the selection's if it was trained, else the model's, in the stored dtype."""
    source = parts.overrides if name in parts.overrides else model.tensors
    dtype: torch.dtype = getattr(torch, stored)
    return source[name].to(dtype)


def packed_config(parts: Parts) -> dict[str, Any]:
    """The model's config.json with a `quantization_config`; everything else, the dtype included, as it was."""
    return {**parts.config, "quantization_config": quantization_config(parts.linears)}


def bits_per_weight(spec: Pack, parts: Parts, actual: int) -> dict[str, float]:
    """True bits per weight: stored bytes of the linears over their weights, and the file over all weights."""
    shapes = {name: parts.shapes[f"{name}.weight"] for name in parts.linears}
    stored = sum(linear_bytes(spec.format, fmt, (shapes[n][0], shapes[n][1])) for n, fmt in parts.linears.items())
    return {"linear": 8 * stored / max(1, weights_of(shapes)), "total": 8 * actual / weights_of(parts.shapes)}


def _replaced(name: str) -> bool:
    """Files that describe the source's own weights."""
    return name in ("config.json", MANIFEST) or name.endswith((".safetensors", ".safetensors.index.json", ".bin"))


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def _write_json(path: Path, document: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path

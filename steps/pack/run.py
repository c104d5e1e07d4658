"""Write a selection and everything around it as one folder that an engine loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from schemas.pack import Pack
from steps.model.structure import IN_BLOCKS
from steps.pack import compressed_tensors, container, gguf
from steps.pack.engines import check_accepted
from steps.pack.folder import CONFIG, MANIFEST, Written, copy_around, write_json, write_weights
from steps.pack.manifest import manifest, origin_of
from steps.pack.parts import Parts, matrix_shape, ordered, parts_of
from steps.pack.quantization_config import quantization_config
from steps.pack.sizes import file_bytes, linear_bytes, metadata_size, weights_of
from steps.step import Env, Output, Value


def run(spec: Pack, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """Pack `selection` into copies of the files of `model`; meta has bytes and true bits per weight."""
    model, selection = inputs["model"], inputs["selection"]
    parts = parts_of(model, selection)
    check_accepted(spec.format, parts.linears, parts.config, spec.target)
    files = copy_around(model, env.scratch)
    written = write(spec, parts, model, env)
    meta = {
        "bytes": sizes(spec, parts, model, written),
        "weights": list(written.weights),
        "bpw": bits_per_weight(spec, parts, written),
    }
    document = manifest(
        spec.packing.model_dump(mode="json"),
        meta,
        parts.linears,
        written.tensors,
        written.headers,
        origin_of(model, selection),
    )
    files |= {**written.files, MANIFEST: write_json(env.scratch / MANIFEST, document)}
    return {"packed": Output(meta=meta, files=files)}


def write(spec: Pack, parts: Parts, model: Value, env: Env) -> Written:
    """The weights, and the config that loads them."""
    match spec.format:
        case "compressed-tensors":
            written = write_weights(spec.packing, parts, model, compressed_tensors.encode, env)
            return _configured(parts, written, quantization_config(parts.linears, ordered(parts)), env)
        case "bitsmith":
            written = write_weights(spec.packing, parts, model, container.encode, env)
            return _configured(parts, written, container.settings(parts, written.tensors), env)
        case "gguf":
            return gguf.write(parts, model, env)
        case _:
            assert_never(spec.format)


def _configured(parts: Parts, written: Written, settings: Mapping[str, Any], env: Env) -> Written:
    """With the model's config.json and a `quantization_config`; all else in it, the dtype included, as it was."""
    config = write_json(env.scratch / CONFIG, {**parts.config, "quantization_config": settings})
    return Written({**written.files, CONFIG: config}, written.weights, written.header, written.tensors, written.headers)


def sizes(spec: Pack, parts: Parts, model: Value, written: Written) -> dict[str, int]:
    """Bytes of the weights files as predicted and as they are, and how much of that is headers."""
    shape_facts = parts.config, parts.shapes, parts.dtypes, parts.linears
    metadata = metadata_size(spec.format, parts.config, model.files)
    return {
        "predicted": file_bytes(spec.format, *shape_facts, spec.shard_bytes, metadata),
        "actual": sum(written.files[name].stat().st_size for name in written.weights),
        "header": written.header,
    }


def bits_per_weight(spec: Pack, parts: Parts, written: Written) -> dict[str, float]:
    """True bits per weight: stored bytes of the blocks' linears over their weights, and the files over all weights."""
    shapes = {name: matrix_shape(parts, name) for name in parts.linears if name.startswith(IN_BLOCKS)}
    stored = sum(linear_bytes(spec.format, parts.linears[name], shape) for name, shape in shapes.items())
    actual = sum(written.files[name].stat().st_size for name in written.weights)
    return {"linear": 8 * stored / max(1, weights_of(shapes)), "total": 8 * actual / weights_of(parts.shapes)}

"""Whether a checkpoint is what its config says, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from schemas.errors import InputError
from schemas.structure import HEAD, is_tied
from store.sources.shards import Span
from store.sources.tensor_bytes import DTYPES

IGNORED_TENSORS = ("*.rotary_emb.inv_freq",)  # buffers that old checkpoints store; every loader recomputes them


def check_unquantized(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError for a checkpoint that has been quantized already."""
    if config.get("quantization_config") is not None:
        raise InputError(
            "the model is already quantized",
            where=where,
            got="quantization_config",
            wanted="weights in bfloat16, float16 or float32",
            fix="start from the original model",
        )


def check_fit(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], spans: Mapping[str, Span], where: str
) -> None:
    """Raise InputError unless every parameter is there with the right shape and a float dtype, and nothing else."""
    missing = [n for n in shapes if n not in spans]
    known = shapes.keys() | ({HEAD} if is_tied(config) else set())
    extra = [n for n in spans if n not in known and not any(fnmatchcase(n, i) for i in IGNORED_TENSORS)]
    if missing or extra:
        raise _misfit(where, missing, extra)
    for name, shape in shapes.items():
        _check_tensor(spans[name], shape, f"{where}/{spans[name].shard}: {name}")


def _misfit(where: str, missing: list[str], extra: list[str]) -> InputError:
    parts = [
        (f"{len(names)} {kind}: {', '.join(names[:3])}")
        for kind, names in (("missing", missing), ("unknown", extra))
        if names
    ]
    return InputError(
        "the checkpoint does not fit its config",
        where=where,
        got="; ".join(parts),
        wanted="exactly the parameters of the architecture",
        fix="check model_type, num_hidden_layers and the bias fields in config.json, or fetch the model again",
    )


def _check_tensor(span: Span, shape: tuple[int, ...], where: str) -> None:
    if span.shape != shape:
        raise InputError(
            "a parameter's shape does not fit the config",
            where=where,
            got=list(span.shape),
            wanted=list(shape),
            fix="use the config.json that belongs to these weights",
        )
    if span.dtype not in DTYPES:
        raise InputError(
            "weights of a dtype that is not quantized from",
            where=where,
            got=span.dtype,
            wanted=", ".join(DTYPES),
            fix="start from the original model, in bfloat16, float16 or float32",
        )

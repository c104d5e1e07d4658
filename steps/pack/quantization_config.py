"""The `quantization_config` of config.json, and what the plain loader refuses. Torch-free.

Keys: compressed-tensors 0.20.0, quantization/quant_config.py, quant_scheme.py and quant_args.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.quantize import Format
from steps.pack.sizes import model_dtype

LOADER_DTYPES = ("bfloat16", "float16", "float32")


def _weights(fmt: Format) -> dict[str, Any]:
    grouped = fmt.group_size != "row"
    return {
        "num_bits": fmt.bits,
        "type": "int",
        "symmetric": fmt.symmetry != "asymmetric",
        "strategy": "group" if grouped else "channel",
        "group_size": fmt.group_size if grouped else None,
        "dynamic": False,
    }


def _storage(fmt: Format) -> tuple[int, int, bool]:
    """What the loader sees of a format; signed and symmetric grids are one to it."""
    return fmt.bits, 0 if fmt.group_size == "row" else fmt.group_size, fmt.symmetry == "asymmetric"


def quantization_config(linears: Mapping[str, Format]) -> dict[str, Any]:
    """One config group per stored format; `linears` maps module paths to formats.

    Targets are whole module paths, in model order: no pattern can match too much or too little, and engines that fuse
    linears look each part up by its own path.
    """
    members: dict[tuple[int, int, bool], list[str]] = {}
    formats: dict[tuple[int, int, bool], Format] = {}
    for name, fmt in linears.items():
        members.setdefault(_storage(fmt), []).append(name)
        formats[_storage(fmt)] = fmt
    scheme = {"input_activations": None, "output_activations": None, "format": "pack-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": members[key], "weights": _weights(formats[key]), **scheme}
            for i, key in enumerate(sorted(members))
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def refusals(formats: Iterable[Format], config: Mapping[str, Any], units: Iterable[Unit] = ()) -> list[str]:
    """Reasons why a file with these formats would not load exactly, or not exist; empty when it would.

    Each format is checked against every unit of `units`, when given.
    """
    listed, reasons = list(formats), []
    if "quantization_config" in config:
        reasons.append(
            "config.json has a quantization_config already: the source is quantized; start from the original"
        )
    for fmt in listed:
        if fmt.symmetry == "asymmetric":
            other = Format(bits=fmt.bits, group_size=fmt.group_size).name
            reasons.append(
                f"{fmt.name}: transformers refuses packed zero points (size mismatch on loading); "
                f"use {other}, whose signed scale needs none, or {other}-sym"
            )
    dtype = model_dtype(config)
    if dtype is not None and dtype not in LOADER_DTYPES:
        reasons.append(f"config.json asks for {dtype}; scales load exactly in {', '.join(LOADER_DTYPES)}")
    for fmt in listed:
        bad = [(u.name, shape[1]) for u in units for shape in u.shapes if shape[1] % fmt.columns(shape[1])]
        if bad:
            name, columns = bad[0]
            reasons.append(f"{fmt.name}: {fmt.group_size} does not divide {columns} columns of {name} (of {len(bad)})")
    return reasons


def check_accepted(formats: Iterable[Format], config: Mapping[str, Any], where: str) -> None:
    """Raise InputError with every refusal, if there is one."""
    reasons = refusals(formats, config)
    if reasons:
        raise InputError(
            "the packed file would not load",
            where=where,
            got="; ".join(reasons),
            wanted="formats that plain transformers loads exactly",
            fix="change the formats as named above",
        )

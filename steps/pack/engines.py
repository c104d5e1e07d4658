"""Which engine runs which format from which file, with the source of each rule. Torch-free.

transformers  What 5.23 with compressed-tensors 0.20 loads exactly by `from_pretrained(folder)`: symmetric and signed
              grids in any mixture; packed zero points are refused by its loader (tests/steps/pack/test_engines.py
              holds this and fails when an upgrade changes it). Our container: every format, once `steps.pack.plugin` is
              imported.
vllm          The rule of its Marlin kernels, which every version with compressed-tensors has
              (vllm/model_executor/layers/quantization/utils/marlin_utils.py, `query_marlin_supported_quant_types`:
              uint4b8 and uint8b128, with zero points uint4; MARLIN_SUPPORTED_GROUP_SIZES [-1, 32, 64, 128];
              `verify_marlin_supports_shape`: outputs in multiples of 64, inputs of 128; newer versions pad). Versions
              whose compressed_tensors_wNa16.py lists 2 to 8 bits run the others only through the optional Humming
              kernels. A scale's sign is a factor there like any other. Read, not tried: no vLLM ran here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never, get_args

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import GGML_BLOCKS, Affine, Format
from schemas.pack import Engine, PackFormat
from steps.model.structure import expert_role
from steps.pack import gguf_metadata, gguf_tokenizer
from steps.pack.gguf_names import EXACT, stored_as, why
from steps.pack.sizes import model_dtype

LOADER_DTYPES = ("bfloat16", "float16", "float32")
OWN_ENGINE: Mapping[PackFormat, Engine] = {
    "compressed-tensors": "transformers",
    "bitsmith": "transformers",
    "gguf": "llama.cpp",
}
"""Whose rules hold when no target is named."""
MARLIN_BITS, MARLIN_ZERO_POINT_BITS = (4, 8), (4,)
MARLIN_OUTPUTS, MARLIN_INPUTS = 64, 128

Shapes = Mapping[str, tuple[int, int]]
"""(outputs, inputs) by the name of a linear or unit."""


def cannot_run(engine: Engine, pack: PackFormat, fmt: Format) -> str | None:
    """Why an engine cannot run a format from such a file; None when it can."""
    if pack == "bitsmith":
        return None if engine == "transformers" else f"{engine} does not read our container"
    if pack == "gguf":
        return _not_in_gguf(engine, fmt)
    if not isinstance(fmt, Affine):
        return "compressed-tensors holds affine formats only, for example int4-g64"
    match engine:
        case "transformers":
            if fmt.symmetry == "asymmetric":
                return (
                    f"transformers refuses packed zero points (size mismatch on loading); {_without_zero_points(fmt)}"
                )
            return None
        case "llama.cpp":
            return "llama.cpp reads GGUF files alone"
        case "vllm":
            bits = MARLIN_ZERO_POINT_BITS if fmt.symmetry == "asymmetric" else MARLIN_BITS
            listed = " or ".join(map(str, bits))
            zero = " with zero points" if fmt.symmetry == "asymmetric" else ""
            return None if fmt.bits in bits else f"vLLM's Marlin kernels take {listed} bits{zero}, not {fmt.bits}"
        case _:
            assert_never(engine)


def _not_in_gguf(engine: Engine, fmt: Format) -> str | None:
    if engine == "vllm":
        return "vLLM's reader of GGUF was not tried"
    if stored_as(fmt) is not None:
        return None
    return f"GGUF holds llama.cpp's types, and int{'/'.join(map(str, EXACT))} without zero points; {why(fmt)}"


def model_refusals(pack: PackFormat, config: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    """Reasons why a file format cannot hold this model at all, whatever its weights are quantized to."""
    if pack != "gguf":
        return []
    found = list(gguf_metadata.refusals(config))
    tokenizer = gguf_tokenizer.refusal(gguf_tokenizer.read(files), int(config["vocab_size"]))
    return found if tokenizer is None else [*found, tokenizer]


def _without_zero_points(fmt: Affine) -> str:
    other = Affine(bits=fmt.bits, group_size=fmt.group_size).name
    return f"use {other}, whose signed scale needs none, or {other}-sym"


def restrict(engine: Engine, pack: PackFormat, formats: Iterable[Format]) -> list[Format]:
    """Those an engine runs; InputError naming the reasons when there is none."""
    listed = list(formats)
    kept = [fmt for fmt in listed if cannot_run(engine, pack, fmt) is None]
    if not kept:
        raise InputError(
            f"{engine} runs none of the formats",
            where="target",
            got="; ".join(f"{f.name}: {cannot_run(engine, pack, f)}" for f in listed),
            fix="name formats that it runs, or another target",
        )
    return kept


def readers(pack: PackFormat, formats: Iterable[Format]) -> dict[Engine, list[str]]:
    """For every engine the reasons why it cannot run a file with these formats; none when it can."""
    listed = list(formats)
    found: dict[Engine, list[str]] = {}
    for engine in get_args(Engine):
        reasons = [(fmt.name, cannot_run(engine, pack, fmt)) for fmt in listed]
        found[engine] = [f"{name}: {reason}" for name, reason in reasons if reason is not None]
    return found


def refusals(
    pack: PackFormat,
    formats: Iterable[Format],
    config: Mapping[str, Any],
    units: Iterable[Unit] = (),
    target: Engine | None = None,
) -> list[str]:
    """Reasons why a file with these formats would not load exactly, or not exist; empty when it would.

    Each format is checked against every unit of `units`, when given.
    """
    listed, engine = list(formats), target or OWN_ENGINE[pack]
    shapes = {member: shape for unit in units for member, shape in zip(unit.members, unit.shapes, strict=True)}
    return [
        *_of_the_model(config),
        *(f"{f.name}: {reason}" for f in listed if (reason := cannot_run(engine, pack, f)) is not None),
        *(reason for f in listed for reason in _indivisible(f, shapes)),
        *(reason for f in listed if pack == "gguf" for reason in _not_in_blocks(f, shapes)),
        *(_not_in_tiles(shapes) if engine == "vllm" else ()),
        *(_not_linear(shapes) if pack == "compressed-tensors" else ()),
        *(_experts_differ(listed, shapes) if pack == "compressed-tensors" else ()),
    ]


def _experts_differ(formats: Sequence[Format], members: Iterable[str]) -> Iterator[str]:
    """transformers 5.23 unpacks all experts of a model by one config group (integrations/compressed_tensors.py,
    `get_experts_scheme`); tried: other formats give wrong weights without an error, or do not load."""
    if len(formats) > 1 and any(expert_role(name) is not None for name in members):
        names = ", ".join(fmt.name for fmt in formats)
        yield f"experts in {names}: transformers reads all experts in one format; pin one, or pack to bitsmith"


def _not_linear(members: Iterable[str]) -> Iterator[str]:
    """Tried with transformers 5.23 and compressed-tensors 0.20: a quantized head loads exactly, an embedding never."""
    if any(name.endswith("embed_tokens") for name in members):
        yield "compressed-tensors packs linears, not embeddings: pack to bitsmith, or say `embeddings: keep`"


def _of_the_model(config: Mapping[str, Any]) -> Iterator[str]:
    if "quantization_config" in config:
        yield "config.json has a quantization_config already: the source is quantized; start from the original"
    dtype = model_dtype(config)
    if dtype is not None and dtype not in LOADER_DTYPES:
        yield f"config.json asks for {dtype}; scales load exactly in {', '.join(LOADER_DTYPES)}"


def _indivisible(fmt: Format, shapes: Shapes) -> Iterator[str]:
    bad = [(name, columns) for name, (_, columns) in shapes.items() if columns % fmt.columns(columns)]
    if bad:
        name, columns = bad[0]
        yield f"{fmt.name}: {fmt.columns(columns)} does not divide {columns} columns of {name} (of {len(bad)})"


def _not_in_blocks(fmt: Format, shapes: Shapes) -> Iterator[str]:
    """An affine group may be a whole row, or a part of it, that is no multiple of the 32 weights of a block."""
    kind = stored_as(fmt)
    block = 1 if kind is None else GGML_BLOCKS[kind].weights
    bad = [(n, c) for n, (_, c) in shapes.items() if isinstance(fmt, Affine) and c % block]
    if bad:
        name, columns = bad[0]
        yield f"{fmt.name}: blocks of {block} do not divide {columns} columns of {name} (of {len(bad)})"


def _not_in_tiles(shapes: Shapes) -> Iterator[str]:
    bad = {name: s for name, s in shapes.items() if s[0] % MARLIN_OUTPUTS or s[1] % MARLIN_INPUTS}
    if bad:
        name, (rows, columns) = next(iter(bad.items()))
        yield (
            f"vLLM's Marlin kernels want outputs in multiples of {MARLIN_OUTPUTS} and inputs of {MARLIN_INPUTS}; "
            f"{name} has {rows} and {columns} (of {len(bad)})"
        )


def check_accepted(
    pack: PackFormat,
    linears: Mapping[str, Format],
    config: Mapping[str, Any],
    target: Engine | None = None,
) -> None:
    """Raise InputError with every refusal, if there is one."""
    formats = sorted(set(linears.values()), key=lambda f: f.name)
    reasons = refusals(pack, formats, config, target=target)
    if pack == "compressed-tensors":
        of_experts = {fmt.name: fmt for name, fmt in linears.items() if expert_role(name) is not None}
        reasons += [*_not_linear(linears), *_experts_differ(list(of_experts.values()), linears)]
    if reasons:
        raise InputError(
            "the packed file would not load",
            where="pack",
            got="; ".join(reasons),
            wanted=f"formats that {target or OWN_ENGINE[pack]} runs from {pack}",
            fix="change the formats as named above",
        )

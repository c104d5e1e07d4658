"""The `quantization_config` of config.json for compressed-tensors. Torch-free.

Keys: compressed-tensors 0.20.0, quantization/quant_config.py, quant_scheme.py and quant_args.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from schemas.format import Affine, Format
from steps.model.structure import expert_role
from steps.pack.sizes import affine

Stored = tuple[int, int, bool, bool]
"""What the loader sees of a format: bits, group size (0: a row), zero points, activation order."""
EXPERTS = r"re:.*\.experts\.\d+\.\w+$"
"""Every matrix of every expert, by its path in the checkpoint."""


def _weights(fmt: Affine, ordered: bool) -> dict[str, Any]:
    grouped = fmt.group_size != "row"
    order = {"actorder": "static"} if ordered else {}
    return {
        **order,
        "num_bits": fmt.bits,
        "type": "int",
        "symmetric": fmt.symmetry != "asymmetric",
        "strategy": "group" if grouped else "channel",
        "group_size": fmt.group_size if grouped else None,
        "dynamic": False,
    }


def _stored(fmt: Affine, ordered: bool) -> Stored:
    """Signed and symmetric grids are one to the loader."""
    return fmt.bits, 0 if fmt.group_size == "row" else fmt.group_size, fmt.symmetry == "asymmetric", ordered


def quantization_config(linears: Mapping[str, Format], ordered: Collection[str] = ()) -> dict[str, Any]:
    """One config group per stored format; `linears` maps module paths to formats.

    `ordered` are those whose codes were chosen in order of activation with groups that stay in place: `actorder:
    static`, which says how they were chosen and changes nothing about how they are read. Targets are whole module
    paths, in model order: no pattern can match too much or too little, and engines that fuse linears look each part up
    by its own path.
    """
    members: dict[Stored, list[str]] = {}
    weights: dict[Stored, dict[str, Any]] = {}
    for name, fmt in ((n, affine(f, n)) for n, f in linears.items()):
        key = _stored(fmt, name in ordered)
        members.setdefault(key, []).append(name)
        weights[key] = _weights(fmt, name in ordered)
    scheme = {"input_activations": None, "output_activations": None, "format": "pack-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": _targets(members[key]), "weights": weights[key], **scheme}
            for i, key in enumerate(sorted(members))
        },
        "ignore": [] if "lm_head" in linears else ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def targeted(targets: Iterable[str], names: Iterable[str]) -> set[str]:
    """The linears among `names` that the targets of a group mean."""
    listed = set(targets)
    return {name for name in names if name in listed or (EXPERTS in listed and expert_role(name) is not None)}


def _targets(names: list[str]) -> list[str]:
    """Module paths, and one pattern for experts. They are no modules in transformers 5, which unpacks all of them by
    the group whose pattern says `experts` (integrations/compressed_tensors.py); vLLM looks each up by its path."""
    dense = [name for name in names if expert_role(name) is None]
    return dense if len(dense) == len(names) else [*dense, EXPERTS]

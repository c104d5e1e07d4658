"""Weights cut into several files, and the index that says which file has which tensor. Torch-free.

File names and index are those of transformers (modeling_utils.py, `SAFE_WEIGHTS_INDEX_NAME`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steps.pack.header import Entry

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def shards(parameters: Iterable[Sequence[Entry]], limit: int | None) -> dict[str, list[Entry]]:
    """File name -> its tensors: parameters in the order given, as many per file as `limit` bytes of tensors allow.

    Tensors of one parameter stay together, so a parameter beyond the limit has a file of its own; without a limit, or
    when everything fits, there is one file.
    """
    files: list[list[Entry]] = [[]]
    held = 0
    for entries in parameters:
        size = sum(e.nbytes for e in entries)
        if limit is not None and files[-1] and held + size > limit:
            files.append([])
            held = 0
        files[-1] += entries
        held += size
    if len(files) == 1:
        return {WEIGHTS: files[0]}
    return {f"model-{i:05}-of-{len(files):05}.safetensors": found for i, found in enumerate(files, 1)}


def index(files: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    """The JSON beside several files."""
    total = sum(e.nbytes for entries in files.values() for e in entries)
    where = {e.name: name for name, entries in files.items() for e in entries}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}

"""A packed folder cut into folders of one part each, which the same loaders load: bytes are copied, never decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from steps.pack.gguf import FILE as GGUF
from steps.pack.read import PackedFolder
from steps.verify.cut_gguf import GgufParts
from steps.verify.cut_safetensors import SafetensorsParts
from steps.verify.integrity import check_index
from steps.verify.part import Part


class Packed(Protocol):
    """A packed folder that can be cut."""

    def cut(self, part: Part, target: Path) -> None:
        """Write the folder of one part; `target` is an empty folder."""


def open_cuttable(folder: Path) -> Packed:
    """A packed folder of any file format."""
    if (folder / GGUF).exists():
        return GgufParts(folder)
    packed = PackedFolder(folder)
    check_index(packed)  # parts are single files: nothing that loads them would read it
    return SafetensorsParts(packed)

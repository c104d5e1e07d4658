"""Parts of a folder with a GGUF."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.structure import EMBEDDING, FINAL_NORM
from steps.pack.folder import CONFIG, write_json
from steps.pack.gguf import FILE as GGUF
from steps.pack.gguf_file import Header, Info, header_bytes, padded, read_path
from steps.pack.gguf_names import gguf_name
from steps.pack.gguf_sizes import ROPE_FACTORS
from steps.verify.copied import copy
from steps.verify.part import Part


@dataclass(frozen=True, eq=False)
class GgufParts:
    """A folder that can be cut."""

    folder: Path

    def cut(self, part: Part, target: Path) -> None:
        """A GGUF with the part's tensors and what the file says about the architecture, beside a config.json."""
        header, _ = read_path(self.folder / GGUF)
        config = json.loads((self.folder / CONFIG).read_text("utf-8"))
        write_json(target / CONFIG, part.config(config))
        told = _architecture(header, part)
        picked = list(_picked(header, part))
        norm = {info.name: info for info in header.tensors}.get(gguf_name(FINAL_NORM))
        zeros = [] if part.block is None or norm is None else [Info(gguf_name(EMBEDDING), "f32", (1, *norm.shape))]
        with (self.folder / GGUF).open("rb") as source, (target / GGUF).open("xb") as out:
            out.write(header_bytes(told, [*(info for info, _ in picked), *zeros]))
            for info, start in picked:
                copy(source, start, info.nbytes, out)
                out.write(bytes(padded(info.nbytes) - info.nbytes))
            for info in zeros:
                out.write(bytes(padded(info.nbytes)))


def _picked(header: Header, part: Part) -> Iterator[tuple[Info, int]]:
    """The part's tensors under its names, with where they start; a block's part has what is no parameter, too."""
    prefix = "blk." if part.block is None else f"blk.{part.block}."
    for info, start in zip(header.tensors, header.starts, strict=True):
        if part.block is None:
            if not info.name.startswith(prefix):
                yield info, start
        elif info.name.startswith(prefix):
            yield Info(f"blk.0.{info.name.removeprefix(prefix)}", info.type, info.shape), start
        elif info.name in (gguf_name(FINAL_NORM), ROPE_FACTORS):
            yield info, start


def _architecture(header: Header, part: Part) -> dict[str, Any]:
    """The file's metadata without its tokenizer, which no weight depends on."""
    told = {key: value for key, value in header.metadata.items() if not key.startswith("tokenizer.")}
    return told | {f"{told['general.architecture']}.block_count": 0 if part.block is None else 1}

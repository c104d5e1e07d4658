"""A packed folder cut into folders of one part each, which the same loaders load: bytes are copied, never decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from schemas.errors import InputError
from schemas.format import Format
from schemas.structure import EMBEDDING, FINAL_NORM
from steps.pack.container import METHOD
from steps.pack.folder import CONFIG, MANIFEST, write_json
from steps.pack.gguf import FILE as GGUF
from steps.pack.gguf_file import Header, Info, header_bytes, padded, read_path
from steps.pack.gguf_names import gguf_name
from steps.pack.gguf_sizes import ROPE_FACTORS
from steps.pack.header import Entry, in_file_order
from steps.pack.header import header_bytes as safetensors_header
from steps.pack.quantization_config import EXPERTS, targeted
from steps.pack.read import PackedFolder
from steps.pack.shards import WEIGHTS
from steps.pack.sizes import FILE_METADATA
from steps.verify.part import Part

CHUNK = 1 << 24
"""Bytes copied at once."""


class Packed(Protocol):
    """A packed folder that can be cut."""

    def cut(self, part: Part, target: Path) -> None:
        """Write the folder of one part; `target` is an empty folder."""


def open_cuttable(folder: Path) -> Packed:
    """A packed folder of any file format."""
    return GgufParts(folder) if (folder / GGUF).exists() else SafetensorsParts(PackedFolder(folder))


@dataclass(frozen=True, eq=False)
class SafetensorsParts:
    """A compressed-tensors folder, or one of our own container."""

    packed: PackedFolder

    def cut(self, part: Part, target: Path) -> None:
        """One weights file with the part's tensors, the manifest, and a config whose targets are the part's modules."""
        formats = {part.inside(name): fmt for name, fmt in self.packed.linears.items() if part.holds(name)}
        config = part.config(self.packed.config)
        if formats:
            config["quantization_config"] = self._settings(part, formats)
        write_json(target / CONFIG, config)
        told = {"weights": [WEIGHTS], "formats": {name: fmt.name for name, fmt in formats.items()}}
        write_json(target / MANIFEST, {**self.packed.manifest, **told})
        self._write(part, target / WEIGHTS)

    def _settings(self, part: Part, formats: Mapping[str, Format]) -> dict[str, Any]:
        told = self.packed.config["quantization_config"]
        if told.get("quant_method") == METHOD:
            modules = {part.inside(name): facts for name, facts in told["modules"].items() if part.holds(name)}
            return {**told, "modules": modules}
        groups = {}
        for name, group in told["config_groups"].items():
            targets = [part.inside(each) for each in group["targets"] if part.holds(each)]
            if EXPERTS in group["targets"] and targeted([EXPERTS], formats):
                targets.append(EXPERTS)
            if targets:
                groups[name] = {**group, "targets": targets}
        return {**told, "config_groups": groups}

    def _write(self, part: Part, path: Path) -> None:
        homes = self.packed.homes
        entries = {e.name: e for file in self.packed.files.values() for e in file.entries}
        picked = {Entry(part.inside(n), e.dtype, e.shape): n for n, e in entries.items() if part.holds(n)}
        zeros = list[Entry]()
        if part.block is not None and FINAL_NORM in entries:
            norm = entries[FINAL_NORM]
            picked[norm] = FINAL_NORM
            zeros = [Entry(EMBEDDING, norm.dtype, (1, *norm.shape))]
        with ExitStack() as stack:
            files = {file.path: stack.enter_context(file.path.open("rb")) for file in self.packed.files.values()}
            out = stack.enter_context(path.open("xb"))
            out.write(safetensors_header([*picked, *zeros], FILE_METADATA))
            for e in in_file_order([*picked, *zeros]):
                if e in picked:
                    home = homes[picked[e]]
                    _copy(files[home.path], home.starts[picked[e]], e.nbytes, out)
                else:
                    out.write(bytes(e.nbytes))


@dataclass(frozen=True, eq=False)
class GgufParts:
    """A folder with a GGUF."""

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
                _copy(source, start, info.nbytes, out)
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


def _copy(source: BinaryIO, start: int, size: int, out: BinaryIO) -> None:
    source.seek(start)
    while size:
        data = source.read(min(size, CHUNK))
        if not data:
            raise InputError("a weights file is cut short", where=out.name, fix="copy the folder again")
        out.write(data)
        size -= len(data)

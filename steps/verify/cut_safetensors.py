"""Parts of a compressed-tensors folder, or of one of our own container."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.format import Format
from schemas.structure import EMBEDDING, FINAL_NORM
from steps.pack.container import METHOD
from steps.pack.folder import CONFIG, MANIFEST, write_json
from steps.pack.header import Entry, header_bytes, in_file_order
from steps.pack.quantization_config import EXPERTS, targeted
from steps.pack.read import PackedFolder
from steps.pack.shards import WEIGHTS
from steps.pack.sizes import FILE_METADATA
from steps.verify.copied import copy
from steps.verify.part import Part


@dataclass(frozen=True, eq=False)
class SafetensorsParts:
    """A folder that can be cut."""

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
            out.write(header_bytes([*picked, *zeros], FILE_METADATA))
            for e in in_file_order([*picked, *zeros]):
                if e in picked:
                    home = homes[picked[e]]
                    copy(files[home.path], home.starts[picked[e]], e.nbytes, out)
                else:
                    out.write(bytes(e.nbytes))

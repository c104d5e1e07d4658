"""An original model and a text straight from disk, for a machine that has nothing but the model's own libraries."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from schemas.errors import InputError
from schemas.structure import expected_shapes
from steps.pack.header import SAFETENSORS_NAME
from steps.pack.read import WeightsFile, open_weights
from steps.step import Output, Value

CHUNK_CHARACTERS = 2000
"""A plain text is cut at paragraphs into documents of about this size, so that results can be resampled over them."""
_PARAGRAPHS = re.compile(r"\n[ \t\r]*\n\s*")
_DTYPES = {short: name for name, short in SAFETENSORS_NAME.items()}


@dataclass(frozen=True, eq=False)
class FolderModel:
    """A Hugging Face folder in safetensors as a Value."""

    folder: Path

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """config, shapes and dtypes of every parameter, and a name for people; InputError for one that is missing."""
        config = _config(self.folder)
        shapes = expected_shapes(config, str(self.folder))
        stored = {e.name: e for file in self._files for e in file.entries}
        for name, shape in shapes.items():
            if name not in stored or stored[name].shape != shape:
                raise InputError(
                    "the original does not fit its config",
                    where=f"{self.folder}: {name}",
                    got=list(stored[name].shape) if name in stored else "nothing",
                    wanted=list(shape),
                    fix="give the folder of the original model",
                )
        dtypes = {name: _DTYPES[stored[name].dtype] for name in shapes}
        return {"config": config, "shapes": shapes, "dtypes": dtypes, "name": self.folder.name}

    @cached_property
    def _files(self) -> list[WeightsFile]:
        found = [open_weights(path) for path in sorted(self.folder.glob("*.safetensors"))]
        if not found:
            raise InputError("no weights in safetensors", where=str(self.folder), fix="give the original's folder")
        return found

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Parameters, each read when asked for."""
        homes = {e.name: file.path for file in self._files for e in file.entries}
        return LazyTensors({name: homes[name] for name in self.meta["shapes"]})

    @property
    def children(self) -> Mapping[str, Value]:
        """None."""
        return {}

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """Everything in the folder that is no weights."""
        paths = (p for p in sorted(self.folder.iterdir()) if p.is_file() and p.suffix not in (".safetensors", ".bin"))
        return {p.name: p for p in paths}


@dataclass(frozen=True)
class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors by name out of safetensors files."""

    homes: Mapping[str, Path]

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.homes[name], "pt") as file:
            found: torch.Tensor = file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)


def read_text(path: Path, scratch: Path, field: str = "text") -> Output:
    """A documents Value of a JSONL file with a text field, or of a plain text file; `scratch` keeps a copy."""
    try:
        raw = path.read_text("utf-8")
        if path.suffix in (".jsonl", ".ndjson"):
            texts = [str(json.loads(line)[field]) for line in raw.splitlines() if line.strip()]
        else:
            texts = list(_pieces(raw))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the text cannot be read",
            where=str(path),
            got=error,
            wanted=f"UTF-8 text, or JSONL with a field `{field}`",
            fix="give another --text FILE",
        ) from error
    if not any(texts):
        raise InputError("the text is empty", where=str(path), fix="give another --text FILE")
    listing = scratch / "documents.jsonl"
    listing.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8")
    digests = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
    return Output(meta={"digests": digests}, files={"documents.jsonl": listing})


def _pieces(text: str) -> Iterator[str]:
    held = ""
    for paragraph in _PARAGRAPHS.split(text):
        held = f"{held}\n\n{paragraph}" if held else paragraph
        if len(held) >= CHUNK_CHARACTERS:
            yield held
            held = ""
    if held.strip():
        yield held


def _config(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "no readable config.json", where=str(folder), got=error, fix="give the folder of the original model"
        ) from error
    return found

"""Tensors that lie in files until they are asked for, so that memory holds one of them and not all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load, save


class Spill(MutableMapping[str, torch.Tensor]):
    """A file per tensor in a folder that nobody else writes to; each is read from it, to the CPU, at every look."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._made = 0

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self._made += name not in self._files
        path = self._files.setdefault(name, self._folder / f"{self._made}.safetensors")
        path.write_bytes(save({"": tensor.detach().cpu().contiguous()}))

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = load(self._files[name].read_bytes())[""]
        return tensor

    def __delitem__(self, name: str) -> None:
        self._files.pop(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True)
class Part(Mapping[str, torch.Tensor]):
    """Some tensors of a lazy mapping, as lazy as it."""

    base: Mapping[str, torch.Tensor]
    names: frozenset[str]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __len__(self) -> int:
        return len(self.names)


@contextmanager
def spill(folder: Path) -> Iterator[Spill]:
    """One that ends with the context, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as own:
        yield Spill(Path(own))

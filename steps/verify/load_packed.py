"""Load a packed folder the way anyone would, and compare every weight that came out with what went in.

The comparison is of the dense weights the loaded model computes with, after its own loader has unpacked them, so it
covers the file, its config and the loader together. A load that raised nothing proves nothing: mixed files loaded with
`dequantize=True` come out wrong without an error (transformers 5.23, compressed-tensors 0.20).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from schemas.errors import InputError
from steps.model.overlay import overlay
from steps.model.stream import DERIVED
from steps.step import Value


def folder_of(files: Mapping[str, Path], target: Path) -> Path:
    """A folder with every file of a packed value under its own name, as links to where the bytes are."""
    for name, source in files.items():
        link = target / name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(source.resolve(), link)
    return target


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow progress bars, which third parties draw on stderr unasked; raised errors and logs pass.

    sys.stderr of the whole process is swapped for the duration. Import what will draw before entering: a log handler
    that is created inside keeps the swapped stream.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@torch.no_grad()
def load(folder: Path, device: str) -> Any:
    """The model of `AutoModelForCausalLM.from_pretrained(folder)`, nothing else said, on `device`, weights unpacked.

    compressed-tensors unpacks on the first forward, which one token triggers here. InputError when the loader raises.
    """
    import compressed_tensors.compressors  # noqa: F401  (its log handlers, before stderr is swapped)
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder).eval().to(device)
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise InputError(
            "the packed folder does not load",
            where=str(folder),
            got=f"{type(error).__name__}: {error}",
            wanted="a folder that transformers loads without arguments",
            fix="compare the installed transformers and compressed-tensors with constraints.txt",
        ) from error
    return model


def in_float32(loaded: Any) -> Any:
    """The same model, its weights widened in place to fp32, freed of the loader's offloading wrappers.

    transformers forbids `.float()` on models it loaded as quantized; these weights are unpacked, so torch's is right.
    """
    from compressed_tensors.offload import remove_dispatch

    return torch.nn.Module.float(remove_dispatch(loaded))


def different_weights(loaded: Any, model: Value, selection: Value) -> list[str]:
    """Names of the model's parameters whose loaded value is not, bit for bit, what was packed; empty when all are.

    Expected: quantized linears as `QuantizedTensor.dequantize()`, others as the selection's or the model's own, in
    their stored dtype; both then rounded once to the dtype the loader gives. A parameter that was not loaded is
    different, and so is one that was loaded and that the model does not have.
    """
    packed = overlay(model, selection)
    quantized = {f"{m}.weight" for item in selection.children.values() for m in item.meta.get("members", ())}
    found = dict(loaded.named_parameters())
    different = []
    for name, stored in model.meta["dtypes"].items():
        if name.endswith(DERIVED):
            continue
        expected = packed.tensors[name]
        if name not in quantized:
            expected = expected.to(getattr(torch, stored))
        if name not in found or not _equal(found[name], expected):
            different.append(name)
    known = set(model.meta["dtypes"])
    return different + [name for name in found if name not in known and "weight_" not in name.rpartition(".")[2]]


def _equal(loaded: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(loaded.detach().cpu(), expected.to(loaded.dtype))

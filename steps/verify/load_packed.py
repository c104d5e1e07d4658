"""Load a packed folder the way anyone would, and compare every weight that came out with what went in.

The comparison is of the dense weights the loaded model computes with, after its own loader has unpacked them, so it
covers the file, its config and the loader together. A load that raised nothing proves nothing: mixed files loaded with
`dequantize=True` come out wrong without an error (transformers 5.23, compressed-tensors 0.20).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from schemas.errors import InputError
from steps.model.experts import loaded_name, loaded_part, module_name
from steps.model.overlay import overlay
from steps.model.stream import DERIVED
from steps.pack.container import METHOD
from steps.pack.gguf import FILE as GGUF
from steps.pack.modules import PackedMatrix
from steps.step import Value
from steps.verify.gguf import load_gguf
from steps.verify.loaders import load_decompressed, load_own


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

    compressed-tensors unpacks on the first forward, which one token triggers here; our container needs its plug-in
    imported; a GGUF is named beside its folder, and comes in fp32. A file with packed zero points, which that call
    refuses, is taken apart by the library's own compressor; without the library, any folder by our own reader.
    InputError when the loader raises.
    """
    try:
        loader = _loader(folder)
        with quiet():
            model = loader(folder).eval().to(device)
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


def _loader(folder: Path) -> Callable[[Path], Any]:
    """What loads this folder; libraries are imported here, before stderr is swapped."""
    from transformers import AutoModelForCausalLM

    if (folder / GGUF).exists():
        import gguf  # noqa: F401

        return load_gguf
    settings = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config", {})
    if settings.get("quant_method") == METHOD:
        import steps.pack.plugin  # noqa: F401
    elif find_spec("compressed_tensors") is None:
        return load_own
    else:
        import compressed_tensors.compressors  # noqa: F401

        if not all(group["weights"]["symmetric"] for group in settings.get("config_groups", {}).values()):
            return load_decompressed
    return AutoModelForCausalLM.from_pretrained  # type: ignore[no-any-return]


def in_float32(loaded: Any) -> Any:
    """The same model, its dense weights widened in place to fp32, freed of the loader's offloading wrappers.

    transformers forbids `.float()` on models it loaded as quantized; these weights are unpacked, or exact in any float,
    so torch's is right.
    """
    if getattr(loaded, "quantization_method", None) == "compressed-tensors":
        from compressed_tensors.offload import remove_dispatch

        loaded = remove_dispatch(loaded)
    return torch.nn.Module.float(loaded)


def different_weights(
    loaded: Any, model: Value, selection: Value, names: Mapping[str, str] | None = None, stubs: Collection[str] = ()
) -> list[str]:
    """Names of the model's parameters whose loaded value is not, bit for bit, what was packed; empty when all are.

    Expected: quantized linears as `QuantizedTensor.dequantize()`, others as the selection's or the model's own, in
    their stored dtype; both then rounded once to the dtype the loader gives. A parameter that was not loaded is
    different, and so is one that was loaded and that the model does not have. Of a part of the model `names` says which
    parameters it holds and what it calls them; what it has beside these, `stubs`, is not compared.
    """
    packed = overlay(model, selection)
    quantized = {f"{m}.weight" for item in selection.children.values() for m in item.meta.get("members", ())}
    found = _weights(loaded)
    different = []
    names = {name: name for name in model.meta["dtypes"]} if names is None else names
    for name, inside in names.items():
        if name.endswith(DERIVED):
            continue
        expected = packed.tensors[name]
        if name not in quantized:
            expected = expected.to(getattr(torch, model.meta["dtypes"][name]))
        held = _held(found, inside)
        if held is None or not _equal(held, expected):
            different.append(name)
    known = {form for name in (*names.values(), *stubs) for form in (name, module_name(name), loaded_name(name))}
    return different + [name for name in found if name not in known and "weight_" not in name.rpartition(".")[2]]


def _weights(loaded: Any) -> dict[str, Callable[[], torch.Tensor]]:
    """The dense weights that a loaded model computes with, each made when asked for: `NAME.weight` and so on."""
    found: dict[str, Callable[[], torch.Tensor]] = {n: partial(_itself, p) for n, p in loaded.named_parameters()}
    for name, module in loaded.named_modules():
        if isinstance(module, PackedMatrix):
            found[f"{name}.weight"] = module.dense
    return found


def _held(found: Mapping[str, Callable[[], torch.Tensor]], name: str) -> torch.Tensor | None:
    """The loaded value of a checkpoint's parameter, an expert's also where all of a block are one tensor."""
    for form in (name, module_name(name)):
        if form in found:
            return found[form]()
    joined = found.get(loaded_name(name))
    return None if joined is None else loaded_part(name, joined())


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _equal(loaded: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(loaded.detach().cpu(), expected.to(loaded.dtype))

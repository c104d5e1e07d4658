"""`bitsmith.json`, what a packed folder says about itself: sizes, formats, digests, where it comes from. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.base import digest_of
from schemas.errors import InputError
from schemas.format import Format
from steps.step import Value

VERSION = 1
FIELDS = {"version", "format", "weights", "bytes", "bpw", "formats", "headers", "sha256"}
LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY")


def manifest(
    packing: Mapping[str, Any],
    meta: Mapping[str, Any],
    linears: Mapping[str, Format],
    tensors: Mapping[str, str],
    headers: Mapping[str, str],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The document. `tensors` and `headers` are sha256 by tensor and by weights file.

    It depends on what is packed alone: two recipes that come to the same weights give the same bytes. Which recipe and
    build a delivered folder came from stands beside it, in `bitsmith-build.json`.
    """
    return {
        "version": VERSION,
        **packing,
        **meta,
        "formats": {name: fmt.name for name, fmt in linears.items()},
        "headers": dict(headers),
        "sha256": dict(tensors),
        "origin": dict(origin),
    }


def origin_of(model: Value, selection: Value) -> dict[str, Any]:
    """Digests of the base model, of the selection and of its plan, and the licence files; content, never places."""
    found = {
        "base_model": getattr(model, "digest", None),  # values of a build know theirs, those made in memory do not
        "selection": getattr(selection, "digest", None),
        "plan": digest_of(selection.meta.get("plan")),
        "licence": [_licence(name, path) for name, path in sorted(model.files.items()) if _is_licence(name)],
    }
    return {key: value for key, value in found.items() if value is not None}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a packed folder; InputError when there is none, or a newer Bitsmith wrote it."""
    path = folder / "bitsmith.json"
    if not path.is_file():
        raise InputError("not a packed folder", where=str(folder), wanted="a folder with bitsmith.json")
    try:
        document = json.loads(path.read_text("utf-8"))
        version = document["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("the manifest cannot be read", where=str(path), got=error, fix="build again") from error
    check_version(version, str(path))
    if missing := sorted(FIELDS - document.keys()):
        raise InputError("the manifest cannot be read", where=str(path), wanted=", ".join(missing), fix="build again")
    found: dict[str, Any] = document
    return found


def check_version(version: object, where: str) -> None:
    """InputError unless this is a version that is understood here."""
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise InputError(
            "a newer Bitsmith wrote this" if newer else "unknown version of the packed format",
            where=where,
            got=f"version {version}",
            wanted=f"version {VERSION}",
            fix="update Bitsmith" if newer else "build it again",
        )


def _is_licence(name: str) -> bool:
    return Path(name).name.upper().startswith(LICENCES)


def _licence(name: str, path: Path) -> dict[str, str]:
    text = path.read_bytes()
    lines = (line.strip() for line in text.decode("utf-8", "replace").splitlines())
    return {"file": name, "title": next(filter(None, lines), ""), "sha256": hashlib.sha256(text).hexdigest()}

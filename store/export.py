"""Export: an artifact's files as a folder under their own names, all of it or nothing; and mending such a folder."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from schemas.errors import InputError
from store.disk import link_or_copy, sync
from store.errors import guard

if TYPE_CHECKING:
    from store.artifacts import Artifacts

LINK_FROM = 1 << 20
"""Bytes from which a file is linked instead of copied: weights, which nobody edits. Small files people do edit."""


def export(artifacts: Artifacts, digest: str, folder: Path) -> Path:
    """Make `folder` hold exactly the artifact's files, verified; an existing folder is replaced only if it is empty.

    Large files become read-only hard links to the store where the disk allows it, so they take no space twice.
    """
    files = artifacts.load(digest).files
    paths = {name: files[name] for name in files}
    target = Path(os.path.abspath(folder))
    building = target.parent / f"{_prefix(target)}{os.getpid()}.{uuid.uuid4().hex}"
    with guard(str(target)):
        _clear_after_the_killed(target)
        try:
            for name, path in paths.items():
                _put(path, building / _safe(name))
            building.mkdir(parents=True, exist_ok=True)
            sync([path for path in building.rglob("*")])
            _swap(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def mend(artifacts: Artifacts, digest: str, folder: Path) -> list[str]:
    """Put files of an exported folder back that are gone or of another length; their names. Contents are not read.

    What stood in such a place is kept beside it as `NAME.old`. Files that the artifact does not have are left alone.
    """
    files = artifacts.load(digest).files
    wrong = [name for name, row in files.rows.items() if not _has_length(folder / _safe(name), row["size"])]
    with guard(str(folder)):
        for name in wrong:
            _put_back(files[name], folder / name)
    return wrong


def _has_length(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _put_back(source: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _put(source, part)
        sync([part])
        if os.path.lexists(target):
            target.replace(target.with_name(f"{target.name}.old"))
        part.replace(target)
        sync([target.parent])
    finally:
        part.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    """How the folders begin in which processes of this machine prepare `target`; their numbers follow."""
    return f".{target.name}.{socket.gethostname()}."


def _clear_after_the_killed(target: Path) -> None:
    prefix = _prefix(target)
    for left in target.parent.glob(f"{glob.escape(prefix)}*"):
        process = left.name.removeprefix(prefix).partition(".")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _put(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size >= LINK_FROM:
        link_or_copy(source, to)
    else:
        shutil.copyfile(source, to)


def _safe(name: str) -> Path:
    """A relative path that stays inside."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError("A file of an artifact has a name that leads out of the folder", got=name)
    return path


def _swap(building: Path, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError("The output folder is not empty", where=str(target), fix="choose another, or remove it")
    building.rename(target)
    sync([target.parent])

"""Texts: a file, a folder of .txt/.md files, or JSONL, local or behind an fsspec URL, as named documents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from schemas.base import digest_of
from schemas.calibrate import TextSource
from schemas.errors import InputError
from store.sources.files import scratch_folder
from store.sources.json_object import json_object
from store.sources.places import Place
from store.sources.remembered import write_whole
from store.sources.remote import locate

BUILTIN = "builtin:"
PLAIN, LINES = (".txt", ".md"), (".jsonl", ".ndjson")
STRUCTURED = (".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Refused: taken as plain text, their syntax would be calibrated on."""
MAX_BYTES = 2**30
CHUNK_CHARACTERS = 2000
"""About 500 tokens: a single long file becomes several documents, so that results can be resampled over them."""
_PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n\s*")

Named = tuple[str, str]
HELD_OUT = 5
"""One document in so many is held out where a source is split: those of least digest."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents as a Value. `names` and `notes` are for people and in no digest."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    notes: tuple[str, ...]
    cache: Path | None

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """Names, sha256 of each text, and notes."""
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in self.texts]
        return {"names": list(self.names), "digests": digests, "notes": list(self.notes)}

    @cached_property
    def digest(self) -> str:
        """sha256 over the texts in order; neither names nor places."""
        return digest_of({"texts": self.meta["digests"]})

    @property
    def tensors(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @property
    def children(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """`documents.jsonl`, lines {"name", "text"} in order, written into the cache when first asked for."""
        pairs = zip(self.names, self.texts, strict=True)
        lines = [json.dumps({"name": n, "text": t}, ensure_ascii=False) + "\n" for n, t in pairs]
        raw = "".join(lines).encode()
        folder = self.cache or scratch_folder()
        path = folder / "texts" / hashlib.sha256(raw).hexdigest()[:32] / "documents.jsonl"
        write_whole(path, raw)
        return {"documents.jsonl": path}


def read_documents(
    source: TextSource, cache: Path | None = None, builtins: Mapping[str, Path] | None = None
) -> Documents:
    """The documents of a source; InputError for anything that is not non-empty UTF-8 text.

    Each line of JSONL and each .txt or .md file of a folder (subfolders included, sorted by name) is a document; a
    single plain file is cut at paragraph ends into documents of about CHUNK_CHARACTERS, and a note says so.
    `builtins` are the files behind `builtin:NAME`.
    """
    place, file = _find(source.source, builtins or {})
    notes: list[str] = []
    if file is None:
        found = _folder(place, notes)
    elif PurePosixPath(file).suffix.lower() in LINES:
        found = list(_lines(place, file, source.field))
    else:
        found = _chunks(place, file, notes)
    kept = [(name, text) for name, text in found if text.strip()]
    if not kept:
        raise InputError("no text", where=source.source, got=f"{len(found)} empty documents", fix="give another text")
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} empty documents left out of {len(found)}")
    kept = _part(source, kept)
    names, texts = zip(*kept, strict=True)
    return Documents(names, texts, tuple(notes), cache)


def _part(source: TextSource, found: list[Named]) -> list[Named]:
    """The documents of the part asked for, in their order; equal texts are in the same part, wherever they stand."""
    if source.part == "all":
        return found
    ranked = sorted({hashlib.sha256(text.encode()).hexdigest() for _, text in found})
    if len(ranked) < 2:
        raise InputError(
            "one document cannot be split into a part that is kept and one that is held out",
            where=source.source,
            wanted="at least 2 different documents",
            fix="give a text of more documents, or name another text to choose on: `text.choose`",
        )
    held = set(ranked[: max(1, len(ranked) // HELD_OUT)])
    wanted = source.part == "held_out"
    return [each for each in found if (hashlib.sha256(each[1].encode()).hexdigest() in held) == wanted]


def _find(source: str, builtins: Mapping[str, Path]) -> tuple[Place, str | None]:
    name = source.removeprefix(BUILTIN)
    if name == source:
        return locate(source, deep=True)
    if name not in builtins:
        known = ", ".join(BUILTIN + n for n in sorted(builtins))
        raise InputError("unknown built-in text", where=source, wanted=known, fix="choose one of these, or a file")
    return locate(str(builtins[name]))


def _text(place: Place, name: str) -> str:
    where, size = f"{place.where}/{name}", place.size(name)
    if size > MAX_BYTES:
        raise InputError("text file too large", where=where, got=f"{size} bytes", wanted=f"at most {MAX_BYTES}")
    raw = place.read(name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(where, f"byte 0x{raw[error.start]:02x} at offset {error.start}") from None
    if "\0" in text:
        raise _not_text(where, f"a zero byte at offset {raw.index(0)}")
    return text


def _not_text(where: str, got: str) -> InputError:
    return InputError("not a UTF-8 text file", where=where, got=got, wanted="text in UTF-8", fix="convert the file")


def _folder(place: Place, notes: list[str]) -> list[Named]:
    names = place.names(deep=True)
    plain = [n for n in names if PurePosixPath(n).suffix.lower() in PLAIN]
    if not plain:
        raise InputError(
            "no text files in the folder",
            where=place.where,
            got=f"{len(names)} other files",
            wanted=f"files ending in {' or '.join(PLAIN)}; JSONL is named as a file",
            fix="point at the folder or file that holds the text",
        )
    if len(plain) < len(names):
        notes.append(f"{len(names) - len(plain)} files that are not {' or '.join(PLAIN)} left out")
    return [(name, _text(place, name)) for name in plain]


def _lines(place: Place, file: str, field: str) -> Iterator[Named]:
    """Documents of a JSONL file; blank lines are passed over. Only `\\n` ends a line, as JSON Lines has it."""
    for number, line in enumerate(_text(place, file).split("\n"), 1):
        if line.strip():
            where = f"{place.where}/{file}, line {number}"
            record = json_object(line.encode(), where, "every line must be one JSON object")
            text, name = record.get(field), record.get("name")
            if not isinstance(text, str):
                raise InputError(
                    f"no text in field {field!r}",
                    where=where,
                    got=f"a {type(text).__name__}" if field in record else f"fields {', '.join(record)}"[:200],
                    wanted="a string",
                    fix="name the field that holds the text: `field: ...`",
                )
            yield name if isinstance(name, str) and field != "name" else f"line {number}", text


def _chunks(place: Place, file: str, notes: list[str]) -> list[Named]:
    if PurePosixPath(file).suffix.lower() in STRUCTURED:
        wanted = f"plain text, or one JSON object per line in a file ending in {' or '.join(LINES)}"
        raise InputError("not a text file", where=f"{place.where}/{file}", wanted=wanted, fix="convert the file")
    chunks = split_text(_text(place, file))
    if len(chunks) > 1:
        notes.append(
            f"one file cut at paragraph ends into {len(chunks)} documents of about {CHUNK_CHARACTERS} characters"
        )
    return [(f"{file}#{i}", chunk) for i, chunk in enumerate(chunks, 1)]


def split_text(text: str, size: int = CHUNK_CHARACTERS) -> list[str]:
    """Consecutive pieces that join to `text`: whole paragraphs, at least `size` characters and less than 2 `size`.

    A paragraph too long for that is cut, at white space where there is some. The last piece may be shorter.
    """
    pieces, start = [], 0
    while len(text) - start > size:
        cut = _cut(text, start + size, min(start + 2 * size, len(text)))
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]] if start < len(text) else pieces


def _cut(text: str, low: int, high: int) -> int:
    """Where to cut in [low, high]: the first paragraph end, else the first line end, else white space, else `low`."""
    finders: tuple[Callable[[], int], ...] = (
        lambda: match.end() if (match := _PARAGRAPH_END.search(text, low - 2, high)) else -1,
        lambda: text.find("\n", low, high) + 1 or -1,
        lambda: text.find(" ", low, high) + 1 or -1,
    )
    return next((cut for find in finders if (cut := find()) >= low), low if high < len(text) else high)

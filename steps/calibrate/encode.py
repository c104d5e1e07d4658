"""The model's own tokenizer as one function from texts to token ids."""

from __future__ import annotations

import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from schemas.errors import InputError

BATCH = 2**20
"""Characters encoded at once: up to some hundred bytes each are held meanwhile. A longer text is encoded in pieces."""
PIECE, LEAD = 2**16, 256
"""Characters of a piece of a long text, and of the text before it that is encoded with it."""
CUTS = (re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)"), re.compile(r"(?<=\S)(?= \S)"))
"""Where a piece may start: after a single line end or before a single space, else before a single space alone. A
tokenizer that splits text into words at white space has no token that goes across."""
NAMES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.tiktoken")
"""Files that hold a vocabulary when there is no tokenizer.json."""

Encode = Callable[[Sequence[str], bool], list[list[int]]]


def open_tokenizer(files: Mapping[str, Path], scratch: Path) -> Encode:
    """(texts, with special tokens) -> ids of each; from tokenizer.json, else through transformers' AutoTokenizer.

    Truncation and padding that were saved with the tokenizer are switched off. `scratch` is an empty folder.
    """
    if "tokenizer.json" in files:
        return _fast(files["tokenizer.json"])
    if not any(name in files for name in NAMES):
        raise InputError(
            "the model has no tokenizer",
            where="model",
            got=", ".join(sorted(files)) or "no files",
            wanted="tokenizer.json, or another tokenizer that transformers loads",
            fix="put the tokenizer's files into the model's folder",
        )
    return _slow(files, scratch)


def _fast(path: Path) -> Encode:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise _broken(str(path), error) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # The fast form keeps no offsets; ids are the same.
    return lambda texts, special: [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)]


def _slow(files: Mapping[str, Path], scratch: Path) -> Encode:
    from transformers import AutoTokenizer

    folder = scratch / "tokenizer"
    folder.mkdir()
    for name in files:
        shutil.copyfile(files[name], folder / name)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its parser met
        raise _broken("model", error) from error
    return lambda texts, special: tokenizer(list(texts), add_special_tokens=special, truncation=False)["input_ids"]


def _broken(where: str, error: Exception) -> InputError:
    return InputError(
        "the model's tokenizer does not load", where=where, got=f"{type(error).__name__}: {error}", fix="fetch it again"
    )


def encode_all(encode: Encode, texts: Sequence[str], special: bool, vocabulary: int) -> list[array[int]]:
    """Ids of every text as int32 arrays, encoded about BATCH characters at a time.

    InputError for a text that does not encode, and for an id that the model has no embedding for.
    """
    found = []
    for batch in _batches(texts):
        try:
            encoded = [_encode_long(encode, batch[0], special)] if len(batch[0]) > BATCH else encode(batch, special)
        except Exception as error:  # tokenizers raises bare Exception
            raise _broken("text", error) from error
        found += [_checked(ids, vocabulary) for ids in encoded]
    return found


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in order, together of at most BATCH characters; a longer one by itself."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _encode_long(encode: Encode, text: str, special: bool) -> Sequence[int]:
    """Ids of a text of any length, encoded in pieces where that gives the ids of the whole, else in one."""
    ends = _ends(encode, text[:LEAD]) if special else ([], [])
    for cut in CUTS:
        if ends is not None and (ids := _in_pieces(encode, text, cut)) is not None:
            return array("i", ends[0]) + ids + array("i", ends[1])
    return encode([text], special)[0]


def _in_pieces(encode: Encode, text: str, cut: re.Pattern[str]) -> array[int] | None:
    """Ids of a text without special tokens, from pieces of at least PIECE characters that start at a `cut`.

    Each is encoded behind the LEAD characters before it, whose own ids are then dropped, so that what a tokenizer puts
    before a text stands only where the text begins. None where those ids change with what follows: such a tokenizer
    has tokens across the cut. Otherwise these are the ids of the whole text, unless the bounds of tokens depend on text
    farther away than that.
    """
    starts = _starts(text, cut)
    pieces = (text[max(start - LEAD, 0) : stop] for start, stop in pairwise([*starts, len(text)]))
    leads = (text[max(start - LEAD, 0) : start] for start in starts)
    ids = array("i")
    for batch in _batches(pieces):
        heads = encode(list(islice(leads, len(batch))), False)
        for head, both in zip(heads, encode(batch, False), strict=True):
            if both[: len(head)] != head:
                return None
            ids.extend(both[len(head) :])
    return ids


def _starts(text: str, cut: re.Pattern[str]) -> list[int]:
    """Where pieces start: 0, then the first cut at least PIECE characters on, and so on."""
    starts = [0]
    while found := cut.search(text, starts[-1] + PIECE):
        starts.append(found.start())
    return starts


def _ends(encode: Encode, text: str) -> tuple[list[int], list[int]] | None:
    """The special tokens before and after any text, as seen around this one; None where they cannot be told apart."""
    plain, whole = (encode([text], special)[0] for special in (False, True))
    at = next((at for at in range(len(whole)) if plain and whole[at : at + len(plain)] == plain), None)
    return None if at is None else (whole[:at], whole[at + len(plain) :])


def _checked(ids: Sequence[int], vocabulary: int) -> array[int]:
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise InputError(
            "the tokenizer does not belong to this model",
            where="model",
            got=f"token id {max(ids)}",
            wanted=f"ids below the vocabulary size {vocabulary}",
            fix="use the tokenizer files that came with these weights",
        )
    return array("i", ids)

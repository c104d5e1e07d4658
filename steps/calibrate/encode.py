"""The model's own tokenizer as one function from texts to token ids."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import InputError

BATCH_DOCUMENTS = 256
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
    return lambda texts, special: [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=special)]


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
    """Ids of every text as int32 arrays; InputError for an id that the model has no embedding for."""
    return [ids for batch in _batches(texts) for ids in _encode(encode, batch, special, vocabulary)]


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[i : i + BATCH_DOCUMENTS] for i in range(0, len(texts), BATCH_DOCUMENTS))


def _encode(encode: Encode, texts: Sequence[str], special: bool, vocabulary: int) -> Iterator[array[int]]:
    try:
        encoded = encode(texts, special)
    except Exception as error:  # tokenizers raises bare Exception
        raise _broken("text", error) from error
    for ids in encoded:
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise InputError(
                "the tokenizer does not belong to this model",
                where="model",
                got=f"token id {max(ids)}",
                wanted=f"ids below the vocabulary size {vocabulary}",
                fix="use the tokenizer files that came with these weights",
            )
        yield array("i", ids)

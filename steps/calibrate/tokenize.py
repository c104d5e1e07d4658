"""Token windows of a text, cut and ordered so that slices of one text never overlap.

N windows, S tokens of the longest window taken.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from schemas.calibrate import Tokenize
from schemas.errors import InputError
from steps.calibrate.encode import encode_all, open_tokenizer
from steps.model.structure import max_length
from steps.step import Env, Output, Value

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Window:
    """Consecutive ids of a text, and the documents (by index) that they come from."""

    ids: array[int]
    documents: range


def run(spec: Tokenize, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """Tokenize all documents, cut them into windows, put these into one fixed order and take the slice asked for."""
    model, text = inputs["model"], inputs["text"]
    config, texts = model.meta["config"], _texts(text)
    length, notes = _length(spec, config)
    encode = open_tokenizer(model.files, env.scratch)
    documents = encode_all(encode, texts, spec.layout == "document", int(config["vocab_size"]))
    if spec.layout == "stream":
        windows = stream_windows(documents, _end_token(config, notes), length)
        order = stream_order(len(windows), spec.seed)
    else:
        windows = document_windows(documents, length)
        order = document_order([w.documents.start for w in windows], spec.seed)
    taken = [windows[i] for i in order[spec.skip : spec.skip + spec.windows]]
    _check_enough(spec, length, documents, len(windows), len(taken), notes)
    return {"tokens": _output(spec, length, taken, text.meta["digests"], notes)}


def _texts(text: Value) -> list[str]:
    with open(text.files["documents.jsonl"], encoding="utf-8", newline="\n") as lines:
        return [json.loads(line)["text"] for line in lines]


def _length(spec: Tokenize, config: Mapping[str, Any]) -> tuple[int, list[str]]:
    longest = max_length(config)
    if spec.length <= longest:
        return spec.length, []
    return longest, [f"windows of {spec.length} tokens asked, capped at the model's context of {longest}"]


def _end_token(config: Mapping[str, Any], notes: list[str]) -> list[int]:
    """The end token as a list of one id; empty, with a note, when the config names none."""
    end = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    if isinstance(end, int) and 0 <= end < int(config["vocab_size"]):
        return [end]
    notes.append(f"documents joined without an end token: the config's eos_token_id is {end}")
    return []


def stream_windows(documents: Sequence[Sequence[int]], end: Sequence[int], length: int) -> list[Window]:
    """All documents joined by `end`, cut into full windows; what is left over is dropped."""
    stream = array("i")
    for index, ids in enumerate(documents):
        stream.extend(end if index else ())
        stream.extend(ids)
    stops = [s + index * len(end) for index, s in enumerate(accumulate(len(ids) for ids in documents))]
    windows = []
    for start in range(0, len(stream) - length + 1, length):
        # An end token counts as part of the document after it.
        first, last = bisect_right(stops, start), bisect_right(stops, start + length - 1)
        windows.append(Window(stream[start : start + length], range(first, last + 1)))
    return windows


def document_windows(documents: Sequence[Sequence[int]], length: int) -> list[Window]:
    """Every document cut into windows of `length` and a shorter last one; a single token predicts nothing: dropped."""
    return [
        Window(array("i", ids[start : start + length]), range(index, index + 1))
        for index, ids in enumerate(documents)
        for start in range(0, len(ids) - 1, length)
    ]


def _rank(*parts: int) -> bytes:
    """A pseudo-random sort key that is the same everywhere and for ever."""
    return hashlib.sha256(":".join(map(str, parts)).encode()).digest()


def stream_order(count: int, seed: int) -> list[int]:
    """A permutation of window indices."""
    return sorted(range(count), key=lambda window: _rank(seed, window))


def document_order(document_of: Sequence[int], seed: int) -> list[int]:
    """A permutation of window indices that takes a window of every document, in shuffled order, before any document's
    second one, and so on; within a document, windows are shuffled too."""
    shuffled = sorted(range(len(document_of)), key=lambda window: _rank(seed, document_of[window], window))
    rounds: dict[int, int] = {}
    keys = {}
    for window in shuffled:
        document = document_of[window]
        rounds[document] = rounds.get(document, -1) + 1
        keys[window] = (rounds[document], _rank(seed, document))
    return sorted(shuffled, key=keys.__getitem__)


def _check_enough(
    spec: Tokenize, length: int, documents: Sequence[Sequence[int]], available: int, taken: int, notes: list[str]
) -> None:
    """InputError when no window is left; a note when there are fewer than asked."""
    if not available:
        counts = [len(ids) for ids in documents]
        raise InputError(
            "the text is too short for one window",
            where="text",
            got=f"{len(counts)} documents, {sum(counts)} tokens, the longest of {max(counts)}",
            wanted=f"{length} tokens" if spec.layout == "stream" else "a document of at least 2 tokens",
            fix="give more text" + (", or a smaller `length`" if spec.layout == "stream" else ""),
        )
    if not taken:
        raise InputError(
            "no windows are left after those skipped",
            where="text",
            got=f"{available} windows of {length} tokens, of which {spec.skip} are skipped",
            wanted=f"{spec.windows} windows after them",
            fix="give more text, a smaller `length`, or a smaller `skip`",
        )
    if taken < spec.windows:
        skipped = f" after {spec.skip} skipped" if spec.skip else ""
        notes.append(f"{spec.windows} windows asked, {taken} available{skipped}")


def _output(spec: Tokenize, length: int, taken: list[Window], digests: Sequence[str], notes: list[str]) -> Output:
    import torch

    used = sorted({document for window in taken for document in window.documents})
    dense = {document: index for index, document in enumerate(used)}
    of_window = [i if spec.layout == "stream" else dense[w.documents.start] for i, w in enumerate(taken)]
    lengths = [len(w.ids) for w in taken]
    tensors = {
        "ids_NS": _padded([w.ids for w in taken], max(lengths)),
        "lengths_N": torch.tensor(lengths, dtype=torch.int32),
        "document_N": torch.tensor(of_window, dtype=torch.int32),
    }
    meta = {
        "length_asked": spec.length,
        "length": length,
        "tokens": sum(lengths),
        "windows": len(taken),
        "documents": len(used),
        "document_digests": [digests[document] for document in used],
        "notes": notes,
    }
    return Output(meta=meta, tensors=tensors)


def _padded(rows: Sequence[array[int]], width: int) -> torch.Tensor:
    import torch

    ids_NS = torch.zeros(len(rows), width, dtype=torch.int32)
    for row, ids in enumerate(rows):
        ids_NS[row, : len(ids)] = torch.frombuffer(ids, dtype=torch.int32)
    return ids_NS

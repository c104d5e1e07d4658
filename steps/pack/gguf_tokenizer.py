"""A tokenizer.json as GGUF metadata, or why llama.cpp cannot be told it. Torch-free.

Two kinds are written: byte-level BPE (`gpt2`), whose splitting must be one that llama.cpp has by name, and what is made
from SentencePiece models (`llama`): BPE with byte fallback over text whose spaces are U+2581.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`enum llama_token_type`."""

SPACE = "\u2581"
_CASED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    rf"{_CASED}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    rf"{_CASED}\p{{N}}{_REST}": "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""Regular expression of a Split -> name in llama.cpp (src/llama-vocab.cpp, `tokenizer.ggml.pre`)."""

IGNORES_MERGES = ("llama-bpe", "tekken")
"""Where llama.cpp takes a word that is a token as it is, whatever the merges."""


class Unfit(Exception):
    """Why a tokenizer cannot be said in GGUF."""


def read(files: Mapping[str, Path]) -> dict[str, Any]:
    """tokenizer.json and what stands beside it in one document; InputError when there is none."""
    if "tokenizer.json" not in files:
        raise InputError("the model has no tokenizer.json", wanted="a fast tokenizer", fix="add it to its folder")
    found: dict[str, Any] = json.loads(files["tokenizer.json"].read_text("utf-8"))
    for name in ("tokenizer_config.json", "generation_config.json"):
        found[name] = json.loads(files[name].read_text("utf-8")) if name in files else {}
    file, told = files.get("chat_template.jinja"), found["tokenizer_config.json"].get("chat_template")
    found["chat_template"] = told if file is None else file.read_text("utf-8")
    return found


def refusal(tokenizer: Mapping[str, Any], vocabulary: int) -> str | None:
    """Why llama.cpp would cut text differently; None when it would not."""
    try:
        _model(tokenizer, vocabulary)
    except Unfit as error:
        return f"GGUF cannot express the tokenizer: {error}"
    return None


def metadata(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values; InputError for a tokenizer that cannot be said."""
    vocabulary = int(config["vocab_size"])
    if reason := refusal(tokenizer, vocabulary):
        raise InputError("the tokenizer does not fit", where="tokenizer.json", got=reason, fix="pack to another format")
    found = _model(tokenizer, vocabulary) | _ids(tokenizer, config)
    before, after = _template(tokenizer)
    found |= {"add_bos_token": before, "add_eos_token": after}
    keys = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    template = tokenizer["chat_template"]
    return keys | ({"tokenizer.chat_template": template} if isinstance(template, str) and template else {})


def _model(tokenizer: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE":
        raise Unfit(f"a {model['type']} model; BPE is written")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise Unfit("dropout, or marks within words")
    ids = _ids_by_token(tokenizer)
    if max(ids.values()) >= vocabulary:
        raise Unfit(f"token {max(ids.values())} of a model with {vocabulary}")
    tokens = [f"[PAD{i}]" for i in range(vocabulary)]
    types = [UNUSED] * vocabulary
    for token, i in ids.items():
        tokens[i], types[i] = token, NORMAL
    for added in tokenizer.get("added_tokens", ()):
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    kind = _sentencepiece if model.get("byte_fallback") else _byte_level
    return kind(tokenizer, tokens, types)


def _ids_by_token(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    added = {a["content"]: a["id"] for a in tokenizer.get("added_tokens", ())}
    return {**tokenizer["model"]["vocab"], **added}


def _byte_level(tokenizer: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """GPT-2's kind: text is split, then bytes are merged."""
    normalizer = tokenizer.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":  # llama.cpp reads text that is NFC already, as most is
        raise Unfit(f"it normalizes text ({normalizer['type']})")
    pre = _split_name(_flat(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    model = tokenizer["model"]
    if bool(model.get("ignore_merges")) != (pre in IGNORES_MERGES):
        raise Unfit(f"ignore_merges is {bool(model.get('ignore_merges'))}, which llama.cpp has not for {pre}")
    merges = [" ".join(_pair(m)) for m in model["merges"]]
    if not merges:
        raise Unfit("it merges nothing")
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}


def _flat(part: Any, inner: str) -> list[Mapping[str, Any]]:
    """The members of a Sequence, or the part itself, or nothing."""
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _split_name(parts: Sequence[Mapping[str, Any]]) -> str:
    kinds = [part["type"] for part in parts]
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        raise Unfit("its words are not bytes as GPT-2 has them")
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and parts[0]["behavior"] == "Isolated" and not parts[1].get("use_regex", True):
        pattern = parts[0]["pattern"].get("Regex")
        if pattern in SPLITS and not parts[0].get("invert"):
            return SPLITS[pattern]
    raise Unfit(f"llama.cpp has no name for how it splits text ({', '.join(kinds)})")


def _sentencepiece(tokenizer: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """SentencePiece's kind: llama.cpp joins the two neighbours whose joint token has the highest score."""
    prefix = _space_prefix(tokenizer)
    ranks = _ranks(tokenizer["model"])
    scores = [0.0] * len(tokens)
    for i, token in enumerate(tokens):
        if types[i] != NORMAL:
            continue
        if token == tokenizer["model"].get("unk_token"):
            types[i] = UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
        elif token in ranks:
            scores[i] = -float(ranks[token])
        elif len(token) > 1:
            raise Unfit(f"no merge makes token {token!r}")
        else:
            scores[i] = -float(len(ranks))
    found = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": types}
    return {**found, "add_space_prefix": prefix}


def _ranks(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> place in the order of joining; Unfit where merges are no order of tokens.

    Merges of one token must stand together, and every pair that makes a token must be a merge.
    """
    ranks: dict[str, int] = {}
    pairs, last = set(), None
    for left, right in map(_pair, model["merges"]):
        token = left + right
        if token != last and token in ranks:
            raise Unfit(f"merges of {token!r} do not stand together")
        ranks.setdefault(token, len(ranks))
        pairs.add((left, right))
        last = token
    vocabulary = model["vocab"]
    for token in ranks:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in pairs:
                raise Unfit(f"{left!r} and {right!r} are tokens that are not joined to {token!r}")
    return ranks


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text gets a space in front; Unfit when spaces are not treated as SentencePiece does."""
    normalizers = _flat(tokenizer.get("normalizer"), "normalizers")
    splits = _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [part["type"] for part in normalizers]
    if not splits and kinds in (["Prepend", "Replace"], ["Replace"]):
        replaced = normalizers[-1]
        spaces = replaced["pattern"].get("String") == " " and replaced["content"] == SPACE
        if spaces and (len(kinds) == 1 or normalizers[0]["prepend"] == SPACE):
            return len(kinds) == 2
    if not normalizers and [part["type"] for part in splits] == ["Metaspace"] and not splits[0].get("split", True):
        return bool(splits[0].get("prepend_scheme", "always") != "never")
    raise Unfit(f"spaces are not treated as in SentencePiece ({', '.join(kinds) or 'no normalizer'})")


def _template(tokenizer: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a text gets a special token before it, and after it."""
    parts = [p for p in _flat(tokenizer.get("post_processor"), "processors") if p["type"] == "TemplateProcessing"]
    pieces = parts[0]["single"] if parts else [{"Sequence": {}}]
    at = next(i for i, piece in enumerate(pieces) if "Sequence" in piece)
    return at > 0, at < len(pieces) - 1


def _ids(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """Ids of special tokens: by the tokenizer's own names, else as the configs say."""
    ids, names = _ids_by_token(tokenizer), tokenizer["tokenizer_config.json"]
    return dict(_special(ids, names, {**config, **tokenizer["generation_config.json"]}))


def _special(ids: Mapping[str, int], names: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, role in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        given = names.get(f"{role}_token")
        name = given["content"] if isinstance(given, Mapping) else given
        listed = config.get(f"{role}_token_id")
        number = ids.get(name) if name is not None else (listed[0] if isinstance(listed, list) else listed)
        if number is not None:
            yield f"{key}_token_id", int(number)

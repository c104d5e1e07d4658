"""How much text there is: the windows that a recipe's texts hold, counted before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.run import Runner
from pipelines.scratch import scratch
from schemas.calibrate import Tokenize
from schemas.recipe import Recipe
from steps.calibrate.encode import Encode, encode_all, open_tokenizer
from steps.model.structure import max_length

SAMPLE = 2_000_000
"""Characters that are tokenized to know how much text there is; what a second or two reads."""
PIECE = 2000
"""Characters of a piece of a sample. It may begin and end within a word: of some 500 tokens that hardly counts."""
_COUNTED: dict[tuple[str, str, str], int] = {}
"""Windows by model, text and layout: a sweep asks for each budget."""


@dataclass(frozen=True)
class Supply:
    """Windows that a tokenize node finds, of how many tokens; `about` where only a sample of the text was counted."""

    windows: int
    length: int
    about: bool


def supply_of(runner: Runner, node: str) -> Supply | None:
    """None where it cannot be known in seconds: tokens from elsewhere, a tokenizer that transformers has to load."""
    bound = runner.by_id[node]
    spec = bound.node.spec
    if not isinstance(spec, Tokenize):
        return None
    model, text = (runner.source(bound.inputs[port][0]) for port in ("model", "text"))
    if "tokenizer.json" not in model.files:
        return None
    config, texts = model.meta["config"], text.texts
    length = min(spec.length, max_length(config))
    key = (model.digest, text.digest, f"{spec.layout} {length}")
    if key not in _COUNTED:
        with scratch(runner.place.cache) as own:
            encode = open_tokenizer(model.files, own)
            counts = _tokens(encode, texts, spec.layout == "document", int(config["vocab_size"]))
        _COUNTED[key] = _windows(counts, spec, length)
    return Supply(min(_COUNTED[key] - spec.skip, spec.windows), length, sum(map(len, texts)) > SAMPLE)


def as_found(runner: Runner) -> Recipe:
    """The recipe, with no more windows of a text than there are, as far as that is known; what forecasts go by."""
    nodes = dict(runner.recipe.nodes)
    for name, node in nodes.items():
        if (supply := supply_of(runner, name)) is not None:
            spec = node.spec.model_copy(update={"windows": max(supply.windows, 1)})
            nodes[name] = node.model_copy(update={"spec": spec})
    return runner.recipe.model_copy(update={"nodes": nodes})


def _tokens(encode: Encode, texts: Sequence[str], special: bool, vocabulary: int) -> list[int]:
    """Tokens of each text; of more than SAMPLE characters estimated from a sample's tokens per character."""
    every = -(-sum(map(len, texts)) // SAMPLE)
    if every <= 1:
        return [len(ids) for ids in encode_all(encode, texts, special, vocabulary)]
    sample = list(_sample(texts, every * PIECE))
    rate = sum(map(len, encode_all(encode, sample, False, vocabulary))) / sum(map(len, sample))
    around = len(encode([""], special)[0])
    return [round(len(text) * rate) + around for text in texts]


def _sample(texts: Sequence[str], stride: int) -> Iterator[str]:
    """A piece at every `stride`-th character of the texts one after another; shorter where its text ends."""
    passed = 0
    for text in texts:
        yield from (text[at : at + PIECE] for at in range(-passed % stride, len(text), stride))
        passed += len(text)


def _windows(counts: Sequence[int], spec: Tokenize, length: int) -> int:
    """Windows of `length` that texts of so many tokens are cut into."""
    if spec.layout == "document":
        return sum(-(-max(count - 1, 0) // length) for count in counts)
    return (sum(counts) + len(counts) - 1) // length

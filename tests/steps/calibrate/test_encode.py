"""Long texts: the ids of the whole, from calls that are bounded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from schemas.errors import InputError
from steps.calibrate import encode
from steps.calibrate.encode import encode_all, open_tokenizer

WORDS = ["the", "of", "a", "tensor", "ünïcode", "12345", "x=1;", "don't", "end.", "(see", "中文字", "e\u0301"]
SPACES = [" "] * 12 + ["\n"] * 4 + ["  ", "\n\n", "\r\n", "\t", " \n", "\n    ", ".\n", ",\n\n"]
REGEX = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def made_up(seed: int, words: int) -> str:
    """Words of several scripts between all kinds of white space."""
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(words))


def byte_level(**options: bool) -> Tokenizer:
    """As GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    return tokenizer


def split_by_regex() -> Tokenizer:
    """As those of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Split(Regex(REGEX), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    """As Llama 2's in its present form."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer


def unsplit(tokenizer: Tokenizer) -> None:
    """As Llama 2's in its old form: text is not split into words, it only has no token across them."""
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def unigram() -> Tokenizer:
    """As SentencePiece's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(add_prefix_space=False),
    "gpt2 with a space": lambda: byte_level(add_prefix_space=True),
    "regex": split_by_regex,
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "unsplit": lambda: metaspace("never"),
    "unigram": unigram,
}


def trained(kind: str, folder: Path) -> Path:
    """A tokenizer of that kind, taught by some text, that puts <s> before a text and </s> behind it."""
    tokenizer = KINDS[kind]()
    special = ["<s>", "</s>", "<unk>"]
    make = trainers.UnigramTrainer if kind == "unigram" else trainers.BpeTrainer
    own = {"unk_token": "<unk>"} if kind == "unigram" else {}
    trainer = make(vocab_size=400, special_tokens=special, show_progress=False, **own)
    tokenizer.train_from_iterator([made_up(1, 3000)], trainer)
    if kind == "unsplit":
        unsplit(tokenizer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ids)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a short text is beyond."""
    for name, value in (("BATCH", 1000), ("PIECE", 100), ("LEAD", 40)):
        monkeypatch.setattr(encode, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_ids_of_the_whole(kind: str, special: bool, tmp_path: Path) -> None:
    path = trained(kind, tmp_path)
    text = made_up(2, 2000)
    whole = Tokenizer.from_file(str(path)).encode(text, add_special_tokens=special).ids
    sizes: list[int] = []
    found = encode_all(counted(open_tokenizer({"tokenizer.json": path}, tmp_path), sizes), [text], special, 400)
    assert [list(ids) for ids in found] == [whole]
    assert len(text) > 5000 and max(sizes) <= 1000


def counted(of: encode.Encode, sizes: list[int]) -> encode.Encode:
    """Notes how many characters each call is given."""

    def encoded(texts: Sequence[str], special: bool) -> list[list[int]]:
        sizes.append(sum(map(len, texts)))
        return of(texts, special)

    return encoded


@pytest.mark.usefixtures("small")
def test_many_texts_are_bounded_too_and_stay_in_order() -> None:
    texts = [chr(97 + i) * size for i, size in enumerate([700, 700, 10, 10, 3000, 0, 5, 999])]
    sizes: list[int] = []
    found = encode_all(counted(characters, sizes), texts, False, 200)
    assert [list(ids) for ids in found] == [list(map(ord, text)) for text in texts]
    assert sum(size > 1000 for size in sizes) == 1  # the run of one letter that cannot be cut


def characters(texts: Sequence[str], special: bool) -> list[list[int]]:
    """A tokenizer that gives code points, 1 before and 2 behind."""
    return [[*[1] * special, *map(ord, text), *[2] * special] for text in texts]


@pytest.mark.usefixtures("small")
def test_tokens_across_the_cuts_are_not_torn(tmp_path: Path) -> None:
    path = trained("gpt2", tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([AddedToken("of the", normalized=False)])
    tokenizer.save(str(path))
    text = "of the " * 1000
    (ids,) = encode_all(open_tokenizer({"tokenizer.json": path}, tmp_path), [text], True, 500)
    assert list(ids) == tokenizer.encode(text).ids


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("text", [" " * 3000, "a" * 3000, " a" * 1500, "ab\n" * 1000])
def test_special_tokens_stand_at_the_ends_alone(text: str) -> None:
    def wordless(texts: Sequence[str], special: bool) -> list[list[int]]:
        return characters([text.strip(" ") for text in texts], special)

    for tokenizer in (characters, wordless):
        (ids,) = encode_all(tokenizer, [text], True, 200)
        assert list(ids) == tokenizer([text], True)[0]


@pytest.mark.usefixtures("small")
def test_an_id_without_an_embedding_is_refused_wherever_it_stands() -> None:
    with pytest.raises(InputError, match="does not belong to this model"):
        encode_all(characters, ["ab\n" * 1000 + "z"], False, ord("z"))
    with pytest.raises(InputError, match="does not load"):
        encode_all(lambda texts, special: 1 / 0, ["ab\n" * 1000], False, 200)

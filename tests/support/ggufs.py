"""Tokenizers that GGUF can express, tiny models wide enough for superblocks, random blocks of every type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from models import tiny_value
from packables import on_disk, random_quantized

from schemas.format import GGML_BLOCKS, Format, Ggml, GgmlType
from steps.model.structure import units
from steps.quantize.ggml.kinds import KINDS
from steps.quantize.ggml.layout import LAYOUTS
from steps.quantize.qtensor import QuantizedTensor, item_meta
from steps.quantize.tensors.ggml import GgmlTensor
from steps.step import Output

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2, "vocab_size": 300}
TEXTS = ["Hello world, it's 2024!", "  two  spaces\n\n\tand tabs ", "naïve café — 你好 🙂", "", " ", "aaa bbb ab abba"]


def random_blocks(kind: GgmlType, rows: int, blocks: int, seed: int = 0) -> torch.Tensor:
    """Legal rows of any content with finite scales, uint8 [rows, bytes]."""
    generator = torch.Generator().manual_seed(seed)
    block = GGML_BLOCKS[kind]
    if kind == "f16":
        return torch.randn(rows, blocks, generator=generator).half().view(torch.uint8)
    blocks_NB = torch.randint(0, 256, (rows * blocks, block.bytes), generator=generator).to(torch.uint8)
    for at in (LAYOUTS[kind].d, LAYOUTS[kind].dmin):
        if at is not None:
            scale_N = 0.01 * (1 + torch.rand(rows * blocks, generator=generator)) / KINDS[kind].levels
            blocks_NB[:, at : at + 2] = scale_N.half().view(torch.uint8).view(-1, 2)
    if kind == "tq1_0":
        numbers = torch.randint(0, 243, (rows * blocks, 52), generator=generator)
        numbers[:, 48:] -= numbers[:, 48:] % 3
        blocks_NB[:, :52] = ((numbers * 256 + 242) // 243).to(torch.uint8)
    if kind == "tq2_0":
        blocks_NB[:, :64] &= ~((blocks_NB[:, :64] >> 1) & 0x55)
    return blocks_NB.view(rows, -1)


def selection(model: Output, formats: list[Format], seed: int = 0) -> Output:
    """Every unit in one of the formats, in turn, random."""
    children, plan = {}, {}
    for i, unit in enumerate(units(model.meta["config"], model.meta["shapes"])):
        form = formats[i % len(formats)]
        pairs = enumerate(zip(unit.members, unit.shapes, strict=True))
        parts = [quantized(member, form, shape, seed + 100 * i + j) for j, (member, shape) in pairs]
        members = {q.name: {"shape": list(q.shape), "loss": 0.0, "damping": 0.0} for q in parts}
        tensors = {name: t for q in parts for name, t in q.to_tensors().items()}
        children[unit.name], plan[unit.name] = Output(item_meta(unit.name, form, members), tensors), form.name
    return Output({"plan": plan}, children=children)


def quantized(name: str, form: Format, shape: tuple[int, int], seed: int) -> QuantizedTensor:
    """A random matrix in any format that GGUF holds."""
    if not isinstance(form, Ggml):
        return random_quantized(name, form, shape, seed)
    return GgmlTensor(name, form, random_blocks(form.type, shape[0], shape[1] // form.block.weights, seed))


def model_on_disk(folder: Path, family: str = "llama", tokenizer: str = "bpe", **changes: Any) -> Output:
    """A tiny wide model with the files of its folder and one of the tokenizers below."""
    model = on_disk(tiny_value(family, dtype=torch.bfloat16, **{**WIDE, **changes}), folder)
    write = {"bpe": byte_level, "sentencepiece": sentencepiece}[tokenizer]
    (folder / "tokenizer.json").write_text(json.dumps(write(folder)))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return model


def byte_level(folder: Path, **settings: Any) -> dict[str, Any]:
    """GPT-2's kind, trained on the texts above; 300 tokens at most."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    settled = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=290, **settled)
    made.train_from_iterator(TEXTS * 5, trainer)
    found: dict[str, Any] = json.loads(made.to_str())
    return found | settings


def sentencepiece(folder: Path) -> dict[str, Any]:
    """Llama 2's kind: bytes, letters, then pieces in the order they are joined, every way to cut them a merge."""
    pieces = ["\u2581", "a", "b", "e", "l", "o", "t", "h", "w", "r", "d", ","]
    joined = ["\u2581a", "ab", "\u2581ab", "he", "ll", "\u2581t", "llo", "hello", "\u2581w", "or", "\u2581wor"]
    joined += ["ba", "abba"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, *joined]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [[p[:k], p[k:]] for p in joined for k in range(1, len(p)) if {p[:k], p[k:]} <= vocabulary.keys()]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    before = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing", "single": before, "pair": before,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, **plain} for i, t in enumerate(tokens[:3])],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space]},
        "pre_tokenizer": None, "post_processor": template, "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>", "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False,
        },
    }  # fmt: skip

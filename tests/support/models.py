"""Tiny random models of every supported family, as transformers models, as Values, and as folders on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from steps.model.structure import SUPPORTED
from steps.step import Output

FAMILIES = SUPPORTED


def tiny_config(family: str = "llama", *, tied: bool = False, **changes: Any) -> dict[str, Any]:
    """A config.json of a model with 3 blocks, hidden 32, 4 query heads over 2 key-value heads, 97 tokens."""
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "dtype": "float32",
    }
    if family == "mistral":
        config["sliding_window"] = None
    return config | MIXTURE.get(family, {}) | changes


MIXTURE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1],
        "shared_expert_intermediate_size": 64, "architectures": ["Qwen2MoeForCausalLM"],
    },
    "qwen3_moe": {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
        "architectures": ["Qwen3MoeForCausalLM"],
    },
}  # fmt: skip
"""What a mixture's config has beyond a dense one's; the second block of the tiny Qwen2-MoE is dense."""


def tiny_transformer(config: Mapping[str, Any], seed: int = 0) -> Any:
    """transformers' own causal LM in fp32; weights large enough that every path matters, norms and biases random."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    model = AutoModelForCausalLM.from_config(loaded, attn_implementation="sdpa", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(1.0 + 0.2 * noise)
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model.eval()


def model_tensors(model: Any, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Parameters by name as a checkpoint stores them: no `lm_head.weight` when tied, every expert's matrix apart."""
    named = {name: p.detach().to(dtype).clone() for name, p in model.named_parameters()}
    return {n: t for name, tensor in named.items() for n, t in as_stored(name, tensor, model.config.model_type)}


def as_stored(name: str, tensor: torch.Tensor, family: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A parameter of transformers' model as checkpoints of its family have it."""
    if family == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    path, _, fused = name.rpartition(".")
    if not path.endswith(".experts"):
        yield name, tensor
        return
    for number, expert_OI in enumerate(tensor):
        parts = ((down, expert_OI),) if fused == "down_proj" else zip((gate, up), expert_OI.chunk(2), strict=True)
        yield from ((f"{path}.{number}.{matrix}.weight", part.clone()) for matrix, part in parts)


def as_loaded(tensors: Mapping[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors as parameters of transformers' model: the inverse of `as_stored`."""
    gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    found, paths = dict[str, torch.Tensor](), dict[str, int]()
    for name, tensor in tensors.items():
        path, inside, rest = name.partition(".experts.")
        if inside:
            paths[path] = max(paths.get(path, 0), int(rest.partition(".")[0]) + 1)
        else:
            found[name.replace(".block_sparse_moe.", ".mlp.")] = tensor
    for path, count in paths.items():
        experts = [{m: tensors[f"{path}.experts.{e}.{m}.weight"] for m in (gate, up, down)} for e in range(count)]
        loaded = f"{path.replace('.block_sparse_moe', '.mlp')}.experts"
        found[f"{loaded}.gate_up_proj"] = torch.stack([torch.cat([e[gate], e[up]]) for e in experts])
        found[f"{loaded}.down_proj"] = torch.stack([e[down] for e in experts])
    return found


def tiny_value(
    family: str = "llama", *, tied: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Output:
    """A tiny random model as the Value of a port of type model (no tokenizer files)."""
    config = tiny_config(family, tied=tied, dtype=str(dtype).removeprefix("torch."), **changes)
    return value_of(config, model_tensors(tiny_transformer(config, seed), dtype))


def value_of(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], name: str = "tiny") -> Output:
    """The model Value of a config and tensors."""
    shapes = {n: list(t.shape) for n, t in tensors.items()}
    dtypes = {n: str(t.dtype).removeprefix("torch.") for n, t in tensors.items()}
    return Output(meta={"config": dict(config), "shapes": shapes, "dtypes": dtypes, "name": name}, tensors=tensors)


def block_view(model: Output, block: int) -> Output:
    """What a block-scope step is handed of a model: the block's tensors, at block 0 the embedding table, at the last
    block the final norm."""
    last = block == model.meta["config"]["num_hidden_layers"] - 1
    ends = (("model.embed_tokens.",) if block == 0 else ()) + (("model.norm.",) if last else ())
    wanted = (f"model.layers.{block}.", *ends)
    tensors = {n: t for n, t in model.tensors.items() if n.startswith(wanted)}
    return Output(meta={**model.meta, "block": block}, tensors=tensors)


def write_model(folder: Path, model: Output, *, tokenizer: bool = True, shards: int = 1) -> Path:
    """A Hugging Face folder of the model; with a byte-level tokenizer (`<|end|>` is id 0) unless asked not to."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(model.meta["config"])
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names = sorted(model.tensors)
    parts = [names[i::shards] for i in range(shards)]
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    if shards == 1:
        files = ["model.safetensors"]
    for file, part in zip(files, parts, strict=True):
        save_file({n: model.tensors[n].contiguous() for n in part}, folder / file, metadata={"format": "pt"})
    if shards > 1:
        size = sum(t.numel() * t.element_size() for t in model.tensors.values())
        weight_map = {n: file for file, part in zip(files, parts, strict=True) for n in part}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if tokenizer:
        write_tokenizer(folder, config["vocab_size"])
    return folder


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A character tokenizer: `<|end|>` is 0, then printable ASCII as far as the vocabulary goes; no unknown token."""
    characters = [chr(c) for c in range(32, 127)][: vocab_size - 2]
    vocab = {"<|end|>": 0, "<|unk|>": 1} | {c: i + 2 for i, c in enumerate(characters)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": i, "content": token, **plain} for i, token in enumerate(("<|end|>", "<|unk|>"))]
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": split, "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<|unk|>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "unk_token": "<|unk|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tiny_tokens(
    windows: int = 6, length: int = 16, *, vocab: int = 97, seed: int = 0, ragged: bool = True, documents: int = 3
) -> Output:
    """A tokens Value of random ids: right-padded windows of uneven lengths (at least 2), several documents."""
    generator = torch.Generator().manual_seed(seed)
    ids_NS = torch.randint(1, vocab, (windows, length), generator=generator, dtype=torch.int32)
    lengths_N = torch.full((windows,), length, dtype=torch.int32)
    if ragged:
        lengths_N = torch.randint(2, length + 1, (windows,), generator=generator, dtype=torch.int32)
        lengths_N[0] = length
    ids_NS[torch.arange(length)[None] >= lengths_N[:, None]] = 0
    document_N = torch.arange(windows, dtype=torch.int32) * documents // windows
    meta = {
        "length_asked": length, "length": length, "tokens": int(lengths_N.sum()), "windows": windows,
        "documents": documents, "document_digests": [f"{i:064x}" for i in range(documents)],
    }  # fmt: skip
    return Output(meta=meta, tensors={"ids_NS": ids_NS, "lengths_N": lengths_N, "document_N": document_N})


@dataclass
class Watched(Mapping[str, torch.Tensor]):
    """A lazy tensor mapping that records, in order, the name of every tensor that is read."""

    tensors: Mapping[str, torch.Tensor]
    reads: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.tensors[name].clone()

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

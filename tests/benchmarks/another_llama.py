"""Another small Llama to measure on, trained on the docstrings of installed packages: not the demo's text, nor shape.

    PYTHONPATH=. python tests/benchmarks/another_llama.py FOLDER [--tokens 1500000]

3 blocks, 384 wide, 6 query heads over 2 key-value heads, head not tied; the demo's tokenizer. Every window is seen
once. No docstring of CPython is among the text, so that the demo's texts are held out. A quarter of an hour on a core.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from refine_inputs import installed_documents
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

DEMO = Path(__file__).resolve().parents[2] / "pipelines" / "demo" / "model"
LENGTH, BATCH, PEAK, WARM_UP = 256, 8, 2e-3, 50


def config() -> LlamaConfig:
    """About 7M parameters."""
    return LlamaConfig(
        vocab_size=2048, hidden_size=384, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, dtype="float32",
    )  # fmt: skip


def windows(tokens: int) -> torch.Tensor:
    """ids_NS of so many tokens, documents in random order, each closed by the end token."""
    tokenizer, ids = AutoTokenizer.from_pretrained(DEMO), list[int]()
    texts = list(installed_documents().values())
    for at in torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist():
        ids += [*tokenizer(texts[at])["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= tokens:
            break
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=1_500_000)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, batches = LlamaForCausalLM(config()), torch.split(windows(options.tokens), BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    started = time.time()
    for step, ids_BS in enumerate(batches):
        rate = min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / len(batches))))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * rate
        loss = model(input_ids=ids_BS, labels=ids_BS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49 or step + 1 == len(batches):
            print(
                f"step {step + 1} of {len(batches)}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True
            )
    model.to(torch.bfloat16).save_pretrained(options.folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(options.folder)
    config().save_pretrained(options.folder)


if __name__ == "__main__":
    main()

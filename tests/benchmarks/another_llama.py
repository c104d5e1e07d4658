"""Another small Llama to measure on: of another shape and seed than the demo's, with a head of its own.

    PYTHONPATH=. python tests/benchmarks/another_llama.py FOLDER [--tokens 2000000]

4 blocks, 256 wide, 8 query heads over 2 key-value heads; the demo's tokenizer, and the split of the built-in text that
the demo was trained on, in random windows. A quarter of an hour on a core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipelines.demo.corpus import split_documents

DEMO = Path(__file__).resolve().parents[2] / "pipelines" / "demo" / "model"
LENGTH, BATCH, PEAK, WARM_UP = 256, 8, 2e-3, 50


def config() -> LlamaConfig:
    """About 4M parameters."""
    return LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=640, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, dtype="float32",
    )  # fmt: skip


def batches(tokens: int) -> Iterator[torch.Tensor]:
    """ids_BS of so many tokens in all, windows of a pass in random order."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    ids = [i for text in split_documents("train") for i in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    generator, left = torch.Generator().manual_seed(1), tokens // (BATCH * LENGTH)
    while left:
        start = int(torch.randint(LENGTH, (1,), generator=generator))
        windows_NS = torch.tensor(ids[start : start + (len(ids) - start) // LENGTH * LENGTH]).view(-1, LENGTH)
        for ids_BS in torch.split(windows_NS[torch.randperm(len(windows_NS), generator=generator)], BATCH)[:left]:
            left -= 1
            yield ids_BS


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    options = parser.parse_args()
    torch.manual_seed(1)
    model, steps = LlamaForCausalLM(config()), options.tokens // (BATCH * LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    started = time.time()
    for step, ids_BS in enumerate(batches(options.tokens)):
        rate = min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * rate
        loss = model(input_ids=ids_BS, labels=ids_BS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49 or step + 1 == steps:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(options.folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(options.folder)
    config().save_pretrained(options.folder)


if __name__ == "__main__":
    main()

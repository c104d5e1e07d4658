"""Train the demo model: a 5M-parameter Llama on the training split of the built-in text.

    python -m pipelines.demo.train [FOLDER]

Writes config, tokenizer and bf16 safetensors into FOLDER (default: `model/` beside this file), and the loss curve
`loss.csv`. The held-out slice that picks the checkpoint is a tenth of the training documents; the shipped calibration
and evaluation splits are never looked at. About 25 minutes on two cores.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipelines.demo.corpus import split_documents

VOCAB, SEQ_LEN, BATCH, EPOCHS = 2048, 256, 16, 10
LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY, CLIP = 2e-3, 100, 0.1, 1.0
HELD_OUT_EVERY, EVAL_STEPS, SEED = 10, 50, 0
END = "<|end|>"


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer with `<|end|>` as its only special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def demo_config() -> LlamaConfig:
    """6 blocks, hidden 256, MLP 768, 8 query heads over 4 key-value heads, tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        dtype="float32",
    )


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All documents, each closed by `<|end|>`, as one int64 vector."""
    end = tokenizer.token_to_id(END)
    return torch.tensor([t for e in tokenizer.encode_batch(texts) for t in (*e.ids, end)])


def held_out_loss(model: LlamaForCausalLM, stream_T: torch.Tensor) -> float:
    """Mean next-token cross-entropy in nats over consecutive windows."""
    windows_NS = stream_T[: len(stream_T) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
    model.eval()
    with torch.no_grad():
        losses = [model(input_ids=w, labels=w).loss.item() * len(w) for w in torch.split(windows_NS, BATCH)]
    model.train()
    return float(sum(losses) / len(windows_NS))


def learning_rate(step: int, total: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (total - WARMUP_STEPS)))


def epoch_batches(stream_T: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Windows of one epoch in random order, cut at a random offset so that no two epochs see the same windows."""
    offset = int(torch.randint(SEQ_LEN, (1,), generator=generator))
    usable = (len(stream_T) - offset) // SEQ_LEN * SEQ_LEN
    windows_NS = stream_T[offset : offset + usable].view(-1, SEQ_LEN)
    order = torch.randperm(len(windows_NS), generator=generator)
    return list(torch.split(windows_NS[order], BATCH))


def train(train_T: torch.Tensor, held_out_T: torch.Tensor, curve: Path) -> dict[str, torch.Tensor]:
    """Run all epochs; return the state dict with the least held-out loss, and write every evaluation to `curve`."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = LlamaForCausalLM(demo_config())
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    batches = [b for _ in range(EPOCHS) for b in epoch_batches(train_T, generator)]
    best, state, running, started = math.inf, {}, [], time.time()
    with curve.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens", "train_loss", "held_out_loss"])
        for step, batch_BS in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, len(batches))
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=batch_BS, labels=batch_BS).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            running.append(loss.item())
            if (step + 1) % EVAL_STEPS == 0 or step + 1 == len(batches):
                held_out = held_out_loss(model, held_out_T)
                seen = (step + 1) * BATCH * SEQ_LEN
                writer.writerow([step + 1, seen, f"{sum(running) / len(running):.4f}", f"{held_out:.4f}"])
                file.flush()
                print(
                    f"step {step + 1}/{len(batches)} held-out {held_out:.4f} {time.time() - started:.0f}s", flush=True
                )
                running = []
                if held_out < best:
                    best, state = held_out, {k: v.clone() for k, v in model.state_dict().items()}
    return state


def main() -> None:
    """Train the tokenizer and the model and save both."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("model")
    folder.mkdir(parents=True, exist_ok=True)
    texts = split_documents("train")
    held_out = texts[::HELD_OUT_EVERY]
    training = [t for i, t in enumerate(texts) if i % HELD_OUT_EVERY]
    tokenizer = train_tokenizer(training)
    state = train(token_stream(tokenizer, training), token_stream(tokenizer, held_out), folder.parent / "loss.csv")
    model = LlamaForCausalLM(demo_config())
    model.load_state_dict(state)
    model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END).save_pretrained(
        folder
    )
    # The weights are stored in bf16; `float32` in the config makes every loader compute in fp32, so that figures
    # measured on a CPU hold no bf16 rounding of activations.
    config = demo_config()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


if __name__ == "__main__":
    main()

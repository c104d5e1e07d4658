"""The peer's side of peer_gptq.py: runs in the peer's own environment and imports nothing of ours.

    python peer_gptq_worker.py TASK.json

The task names the model folder, a safetensors file of token windows, the format, the threads, and where to write the
rounded weights (safetensors) and the seconds (JSON).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def timed(seconds: list[float], clock: Any, function: Any) -> Any:
    """The function, adding the time of each call to `seconds`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(clock() - start)

    return call


def main() -> None:
    """Quantize with llm-compressor's oneshot and its GPTQModifier, defaults but for what the task says."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task["threads"])
    ids = load_file(task["tokens"])["ids_NS"]
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    group = task["group_size"]
    weights = {"num_bits": task["bits"], "type": "int", "symmetric": True}
    weights |= {"strategy": "channel"} if group == "row" else {"strategy": "group", "group_size": group}
    modifier = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
        ignore=["lm_head"],
        block_size=task["block_size"],
        dampening_frac=task["damping"],
    )
    solving: list[float] = []
    clock = time.process_time if task["threads"] == 1 else time.perf_counter
    GPTQModifier.on_sequential_epoch_end = timed(solving, clock, GPTQModifier.on_sequential_epoch_end)
    dataset = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    start = clock()
    oneshot(
        model=model,
        dataset=dataset,
        recipe=modifier,
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
        batch_size=task["batch"],
        shuffle_calibration_samples=False,
    )
    total = clock() - start
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    save_file({f"{n}.weight": m.weight.detach().float().contiguous() for n, m in linears.items()}, task["weights"])
    facts = {"total": total, "solving": sum(solving), "linears": len(linears), "fallbacks": fallbacks(modifier)}
    Path(task["report"]).write_text(json.dumps(facts))


def fallbacks(modifier: Any) -> int:
    """Linears that the peer rounded to nearest because a factorisation failed; -1 if it no longer says so."""
    names = getattr(modifier, "_rtn_fallback_module_names", None)
    return -1 if names is None else len(names)


if __name__ == "__main__":
    main()

"""The peer's side of peer_autoround.py: runs in the peer's own environment and imports nothing of ours.

    python peer_autoround_worker.py TASK.json

The task names the model folder, a safetensors file of token windows, the options of the scheme, the mean bits asked
(none: the first option everywhere), iterations, threads and device, and where to write the rounded weights
(safetensors), and what each linear got and the seconds (JSON).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

NAME = "windows"


def main() -> None:
    """Quantize with AutoRound, defaults but for what the task says; the clock starts with the model in memory."""
    task = json.loads(Path(sys.argv[1]).read_text())
    os.environ |= {"AR_WORK_SPACE": task["scratch"], "AR_AUTO_SCHEME_CACHE": task["scratch"]}
    os.environ |= {"AR_DISABLE_DATASET_SUBPROCESS": "1", "HF_HUB_OFFLINE": "1"}
    import torch
    from auto_round import AutoRound
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(task["threads"])
    ids_NS = load_file(task["tokens"])["ids_NS"]
    count, length = ids_NS.shape
    offer(ids_NS)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    cpu, wall = processor_seconds(), time.perf_counter()
    peer = AutoRound(
        model,
        tokenizer,
        scheme=scheme(task, count, length),
        dataset=NAME,
        iters=task["iterations"],
        nsamples=count,
        seqlen=length,
        batch_size=min(task["batch"], count),
        device_map=task["device"],
        enable_torch_compile=task["compile"],
        amp=task["amp"],
    )
    rounded, chosen = peer.quantize()
    facts: dict[str, Any] = {"cpu": processor_seconds() - cpu, "wall": time.perf_counter() - wall}
    modules = dict(rounded.named_modules())
    save_file({f"{n}.weight": modules[n].weight.detach().float().cpu().contiguous() for n in names}, task["weights"])
    facts["linears"] = {n: [chosen[n][key] for key in ("bits", "group_size", "sym")] for n in names}
    Path(task["report"]).write_text(json.dumps(facts))


def scheme(task: dict[str, Any], count: int, length: int) -> Any:
    """One scheme, or the peer's own search over all of them, scored on all windows in its faster mode."""
    from auto_round import AutoScheme
    from auto_round.schemes import QuantizationScheme

    options = [QuantizationScheme(data_type="int", act_bits=16, **option) for option in task["options"]]
    if task["bits"] is None:
        return options[0]
    sizes = {"nsamples": count, "seqlen": length, "batch_size": min(task["batch"], count)}
    return AutoScheme(avg_bits=task["bits"], options=options, low_gpu_mem_usage=False, **sizes)


def offer(ids_NS: Any) -> None:
    """Register the windows as a dataset, which both the search and the tuning then read token for token."""
    from auto_round.calib_dataset import register_dataset
    from datasets import Dataset

    def windows(*args: Any, **kwargs: Any) -> Any:
        return Dataset.from_dict({"input_ids": ids_NS.tolist(), "attention_mask": (ids_NS >= 0).long().tolist()})

    register_dataset(NAME)(windows)


def processor_seconds() -> float:
    """Of this process and of the children that it has waited for (compilers)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    main()

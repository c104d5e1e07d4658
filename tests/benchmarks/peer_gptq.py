"""Linears per second and output error beside llm-compressor's GPTQ: same model, tokens, machine and threads.

    python tests/benchmarks/peer_gptq.py [--model pipelines/demo/model] [--format int4-g128-sym] [--windows 64]
        [--length 256] [--threads 1] [--repeat 2] [--env ~/.cache/bitsmith/llmcompressor]

The peer wants other versions of transformers and compressed-tensors than ours, so it gets an environment of its own
(made with uv on the first run, with the torch of this one). `--model random` makes a small random Llama.

Two times are printed for each side: the whole run (calibration and rounding, the model in memory before it) and the
rounding alone (scales, factorisation, codes, losses; ours also packs the codes). With one thread they are seconds of
processor time, in which other programs on the machine do not show; with more, of wall-clock time. Both sides use
damping .01, blocks of 128, static activation order. The peer feeds a rounded block's outputs on to the next block; ours
is calibrated on the original, so that formats do not depend on each other. Error is the mean KL(original || rounded)
per held-out token. The peer knows no signed scale, so it is compared with our `-sym` format; our default is printed
too, and the menu of a mixed build, nine formats that share calibration and factorisations (error: the first format's).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer_environment import peer_python
from safetensors.torch import load_file, save_file

from schemas.artifact import Unit
from schemas.calibrate import Calibrate
from schemas.format import Affine, Format, read_format
from schemas.quantize import QuantizeUnit, Rounding
from steps.calibrate import statistics
from steps.model.structure import units
from steps.quantize import unit as quantize
from steps.quantize.qtensor import from_value
from steps.step import Env, Output

MENU = (2, 64), (2, 32), (3, 128), (3, 64), (4, 128), (4, 64), (5, 128), (6, 128), (8, 128)
PEER = "llmcompressor==0.14.0.1"
BATCH = 16
HERE = Path(__file__).resolve().parent
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """Seconds of one side, roundings of a linear done in them, and rounded weights by parameter name."""

    total: float
    solving: float
    linears: int
    weights: Weights


def random_model(folder: Path) -> Path:
    """A Llama as small as the demo's, not trained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 2048}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "initializer_range": 0.2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


def windows(model: Path, split: str, count: int, length: int, vocabulary: int) -> torch.Tensor:
    """Token windows [N, S] int64 of a split of the built-in text; random ones where the folder has no tokenizer."""
    if not (model / "tokenizer.json").exists():
        generator = torch.Generator().manual_seed(len(split))
        return torch.randint(vocabulary, (count, length), generator=generator)
    from tokenizers import Tokenizer

    lines = (HERE.parents[1] / "pipelines" / "demo" / f"{split}.jsonl").read_text().splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines)
    ids = torch.tensor(Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids)
    return ids[: len(ids) // length * length].view(-1, length)[:count]


def run_peer(python: Path, model: Path, ids_NS: torch.Tensor, form: Format, threads: int) -> Result:
    """One run of the peer in its own process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_file({"ids_NS": ids_NS}, folder / "tokens.safetensors")
        task = {"model": str(model), "tokens": str(folder / "tokens.safetensors"), "threads": threads, "batch": BATCH}
        task |= {"bits": form.bits, "group_size": form.group_size, "block_size": 128, "damping": 0.01}
        task |= {"weights": str(folder / "weights.safetensors"), "report": str(folder / "report.json")}
        (folder / "task.json").write_text(json.dumps(task))
        command = [str(python), str(HERE / "peer_gptq_worker.py"), str(folder / "task.json")]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, check=False, env=environment, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the peer failed:\n{done.stderr[-3000:]}")
        facts = json.loads((folder / "report.json").read_text())
        if facts["fallbacks"]:
            print(f"  note: the peer fell back to plain rounding for {facts['fallbacks']} linears")
        return Result(facts["total"], facts["solving"], facts["linears"], load_file(folder / "weights.safetensors"))


def run_ours(config: Mapping[str, Any], tensors: Weights, ids_NS: torch.Tensor, forms: Sequence[Format]) -> Result:
    """Calibrate once, then round every unit to every format; the weights are those of the first format."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    collected = calibrate(config, tensors, ids_NS)
    middle = clock()
    env, items = Env(), []
    for unit in units(config, {n: tuple(t.shape) for n, t in tensors.items()}):
        items += [(unit, [one(unit, form, config, tensors, collected[unit.block], env) for form in forms])]
    end = clock()
    weights = {f"{m}.weight": from_value(found[0], m).dequantize() for unit, found in items for m in unit.members}
    return Result(end - start, end - middle, len(weights) * len(forms), weights)


def calibrate(config: Mapping[str, Any], tensors: Weights, ids_NS: torch.Tensor) -> list[Output]:
    """The statistics of every block, by the step itself."""
    shapes = {n: list(t.shape) for n, t in tensors.items()}
    lengths_N = torch.full((len(ids_NS),), ids_NS.shape[1], dtype=torch.int32)
    tokens = Output(tensors={"ids_NS": ids_NS.int(), "lengths_N": lengths_N})
    collected, carried = [], {}
    for k in range(int(config["num_hidden_layers"])):
        model = Output(meta={"config": config, "shapes": shapes, "block": k}, tensors=tensors)
        inputs = {"model": model, "tokens": tokens, **carried}
        found = statistics.run(Calibrate(step="calibrate", batch=BATCH), inputs, Env())
        collected.append(found["statistics"])
        carried = {"hidden": found["hidden"]}
    return collected


def one(unit: Unit, form: Format, config: Mapping[str, Any], tensors: Weights, stats: Output, env: Env) -> Output:
    """One unit in one format, by the step itself."""
    model = Output(meta={"unit": unit.model_dump(), "config": config}, tensors=tensors)
    spec = QuantizeUnit(format=form, rounding=Rounding())
    return quantize.run(spec, {"model": model, "statistics": stats}, env)["candidates"]


def divergence(folder: Path, weights: Weights, ids_NS: torch.Tensor) -> float:
    """Mean KL(original || rounded) in nats per token."""
    original, changed = load(folder), load(folder)
    changed.load_state_dict(dict(weights), strict=False)
    total = 0.0
    with torch.no_grad():
        for ids in ids_NS.split(8):
            p, q = (m(ids).logits.log_softmax(-1) for m in (original, changed))
            total += float((p.exp() * (p - q)).sum())
    return total / ids_NS.numel()


def load(folder: Path) -> Any:
    """The folder's model by transformers, fp32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pipelines/demo/model")
    parser.add_argument("--format", default="int4-g128-sym")
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache" / "bitsmith" / "llmcompressor")
    for name, default in (("windows", 64), ("length", 256), ("threads", 1), ("repeat", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Interleaved runs; the fastest of each kind in one table."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}
    ids = {s: windows(folder, s, args.windows, args.length, config["vocab_size"]) for s in ("calibrate", "evaluate")}
    form = read_format(args.format)
    menu = [form, *(Affine(bits=b, group_size=g) for b, g in MENU)][: len(MENU)]
    asked = {form.name: [form], "the default": [form.model_copy(update={"symmetry": "signed"})], "menu of 9": menu}
    python = peer_python(args.env.expanduser(), PEER)
    load(folder)  # so that our clock, as the peer's, starts with everything imported
    runs: dict[str, list[Result]] = {}
    for _ in range(args.repeat):
        runs.setdefault("llm-compressor", []).append(run_peer(python, folder, ids["calibrate"], form, args.threads))
        for name, forms in asked.items():
            runs.setdefault(f"bitsmith, {name}", []).append(run_ours(config, tensors, ids["calibrate"], forms))
    report(folder, ids["evaluate"], runs)


def report(folder: Path, ids_NS: torch.Tensor, runs: Mapping[str, Sequence[Result]]) -> None:
    """Seconds, linears per second, how many times the first row's that is, and the error."""
    rates: list[list[float]] = []
    print(f"{'':26s}{'whole run':>24s}{'rounding alone':>24s}{'rate against the peer':>24s}{'KL':>10s}")
    for name, results in runs.items():
        seconds = [min(r.total for r in results), min(r.solving for r in results)]
        rates.append([results[0].linears / s for s in seconds])
        cells = [f"{s:.2f} s {rate:6.1f}/s" for s, rate in zip(seconds, rates[-1], strict=True)]
        gains = "".join(f"{rate / first:8.1f} x" for rate, first in zip(rates[-1], rates[0], strict=True))
        error = divergence(folder, results[0].weights, ids_NS)
        print(f"{name:26s}{cells[0]:>24s}{cells[1]:>24s}{gains:>24s}{error:10.5f}", flush=True)


def main() -> None:
    """Run and print."""
    args = arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        compare(random_model(Path(scratch)) if args.model == "random" else Path(args.model).resolve(), args)


if __name__ == "__main__":
    main()

"""KL of the refined mixed build beside AutoRound's under its own mixed search: same model, text, bytes and machine.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/peer_autoround.py --keep FOLDER [--model FOLDER]
        [--bits 2.5 3.0 3.25 4.25] [--tokens 91648] [--peer-sequences 64] [--iterations 200] [--only peer|ours]
        [--device cpu|cuda] [--python PATH] [--set FIELD=VALUE ...] [--write]

The peer is `auto-round` in an environment of its own (made with uv on the first run, with the torch of this one;
`--python` names an interpreter that has it already). At each budget it searches over 2 to 6 bits with groups of 32, 64
and 128 (AutoScheme, its dynamic program over scores on all its sequences), then tunes block by block. Ours is the
demo's recipe up to the refined selection, with the same fifteen choices and no more bytes than the peer used.

Both draw on one text, never on the evaluation text: the peer's sequences are the first windows that our refinement
trains on. Bytes are counted by one rule for both: codes, a scale of 16 bits for every group, zero points where there
are any; embedding, head and norms stay as they are in the source. Every dequantized model is measured by the same code
in fp32: mean KL(original || rounded) in nats per predicted position of the evaluation text.

With one thread on the CPU, time is seconds of processor time, else of wall-clock time. For the peer the clock starts
when all is imported and the model is in memory; for us it starts before anything is read, in an empty store, and covers
calibration, candidates, scores, plan and refinement. Rows that are done are kept in FOLDER, by what was asked: after a
change of the code take another one, with the peer's rows copied into it. `--write` puts the table into
steps/distill/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from dequantized import check_levels, divergence, rules_of, sizes
from peer_environment import peer_python
from refine_inputs import needed, training_text
from safetensors.torch import load_file, save_file

from pipelines.build import Build, prepare
from pipelines.drive import Outputs, drive
from pipelines.run import MEMO, Place, Runner
from pipelines.settings import Settings
from schemas.base import digest_of
from steps.model.overlay import Replaced, overlay
from steps.step import Output, Value

PEER = "auto-round==0.16.1"
CHOICES = tuple(product((2, 3, 4, 5, 6), (32, 64, 128)))
BATCH = 8
"""Sequences of one of the peer's steps, its default."""
HERE = Path(__file__).resolve().parent
README = Path("steps/distill/README.md")
BEGIN, END = "<!-- peer_autoround.py -->", "<!-- end of peer_autoround.py -->"
Row = dict[str, Any]


def main() -> None:
    """Measure what is asked and print the table."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    arguments.keep.mkdir(parents=True, exist_ok=True)
    rows = [(bits, *pair(arguments, bits)) for bits in arguments.bits]
    lines = list(table(rows))
    print("\n".join(lines))
    if arguments.write:
        text = README.read_text()
        head, _, rest = text.partition(BEGIN)
        README.write_text("\n".join([head + BEGIN, "", *lines, "", END + rest.partition(END)[2]]))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("pipelines/demo/model"))
    parser.add_argument("--text", type=Path, help="JSONL to train on (default: what the demo model was trained on)")
    parser.add_argument("--evaluate", default="builtin:evaluate")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3.0, 3.25, 4.25])
    parser.add_argument("--uniform", nargs=2, type=int, metavar=("BITS", "GROUP"), help="the peer without a search")
    parser.add_argument("--only", choices=("peer", "ours"))
    parser.add_argument("--tokens", type=int, default=91_648)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of our recipe")
    parser.add_argument("--peer-sequences", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="the peer with torch.compile")
    parser.add_argument("--amp", action="store_true", help="the peer in bf16, as on a GPU it always is, since ours is")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache" / "bitsmith" / "autoround")
    parser.add_argument("--python", type=Path, help="an interpreter that has auto-round")
    parser.add_argument("--write", action="store_true")
    found = parser.parse_args()
    found.amp = found.amp or found.device == "cuda"
    return found


def pair(arguments: argparse.Namespace, bits: float) -> tuple[Row | None, Row | None]:
    """The peer's row, and ours at no more than its bytes (or, without it, at the bits asked)."""
    theirs = kept(arguments, "peer", peer_facts(arguments, bits), partial(peer_row, arguments, bits))
    if arguments.only == "peer":
        return theirs, None
    budget = theirs["bpw"] if theirs else bits
    return theirs, kept(arguments, "ours", our_facts(arguments, budget), partial(our_row, arguments, budget))


def kept(arguments: argparse.Namespace, side: str, about: Row, measure: Callable[[Path], Row]) -> Row | None:
    """The row if it was measured before or may be now, in an empty folder of its own."""
    path = arguments.keep / f"{side}-{digest_of(about)[:16]}.json"
    if not path.exists():
        if arguments.only not in (None, side):
            return None
        folder = path.with_suffix("").resolve()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        row = {**about, **measure(folder)}
        path.write_text(json.dumps(row))
        shutil.rmtree(folder)
        print(f"{side}: {row['bpw']:.4f} bits, KL {row['kl']:.5f}, {row['cpu']:.0f} s", flush=True)
    return dict(json.loads(path.read_text()))


def shared_facts(arguments: argparse.Namespace) -> Row:
    """What both sides' rows depend on."""
    names = ("model", "text", "evaluate", "length", "device", "threads")
    return {name: str(getattr(arguments, name)) for name in names}


def peer_facts(arguments: argparse.Namespace, bits: float) -> Row:
    """What the peer's row depends on."""
    asked = {"bits": bits, "uniform": arguments.uniform, "sequences": arguments.peer_sequences, "peer": PEER}
    asked |= {"iterations": arguments.iterations, "compile": arguments.compile, "amp": arguments.amp}
    return shared_facts(arguments) | asked


def our_facts(arguments: argparse.Namespace, budget: float) -> Row:
    """What our row depends on."""
    return shared_facts(arguments) | {"budget": budget, "tokens": arguments.tokens, "set": arguments.set}


def build(arguments: argparse.Namespace, place: Path, bits: float, tokens: int) -> Build:
    """Our recipe, bound to a state folder of its own."""
    text = arguments.text or training_text(arguments.keep)
    changes: list[tuple[str, Any]] = [
        ("model.source", str(arguments.model.resolve())),
        ("text.length", arguments.length),
        ("text.evaluate", arguments.evaluate),
        ("formats", [f"int{b}-g{g}" for b, g in CHOICES]),
        ("budget", {"bits_per_weight": bits}),
        ("distill", {"text": str(text), "tokens": tokens}),
    ]
    changes += [(field, value) for field, _, value in (each.partition("=") for each in arguments.set)]
    where = Settings(place, str(place / "store"), f"sqlite:///{place / 'mlflow.db'}", None)
    return prepare("demo", changes, where, arguments.device)


def made(arguments: argparse.Namespace, bound: Build, nodes: list[str]) -> tuple[Runner, Outputs]:
    """Some of a recipe's nodes and all they stand on, computed."""
    place = Place(arguments.device, bound.where.cache)
    runner = Runner(needed(bound.recipe, nodes), bound.runner.store, place)
    return runner, drive(runner, runner.execute).outputs


def texts(arguments: argparse.Namespace) -> dict[str, Value]:
    """Outside any clock: the model, its evaluation windows, its own hidden states there, windows for the peer."""
    tokens = arguments.peer_sequences * arguments.length
    bound = build(arguments, arguments.keep / "texts", max(arguments.bits), tokens)
    runner, outputs = made(arguments, bound, ["training", "reference"])
    load = runner.store.artifacts.load
    return {
        "model": runner.source("model"),
        "training": load(outputs["training"]["tokens"]),
        "evaluation": load(outputs["evaluation"]["tokens"]),
        "reference": load(outputs["reference"]["reference"]),
    }


def peer_row(arguments: argparse.Namespace, bits: float, folder: Path) -> Row:
    """The peer, run in its own process and measured by us."""
    at = texts(arguments)
    ids_NS = at["training"].tensors["ids_NS"][: arguments.peer_sequences].long()
    save_file({"ids_NS": ids_NS.contiguous()}, folder / "tokens.safetensors")
    run_peer(arguments, bits, folder)
    facts = json.loads((folder / "report.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    rules = {name: (int(b), int(g), bool(symmetric)) for name, (b, g, symmetric) in facts["linears"].items()}
    for name, rule in rules.items():
        check_levels(name, weights[f"{name}.weight"], rule)
    makers = {name: partial(weights.__getitem__, name) for name in weights}
    model = at["model"]
    changed = Output(model.meta, Replaced(model.tensors, makers), model.children, model.files)
    steps = arguments.iterations * min(BATCH, len(ids_NS))
    found = {"distinct": ids_NS.numel(), "trained": steps * arguments.length}
    found |= {"kl": divergence(at, changed, arguments.device)}
    return found | sizes(model, rules) | {name: facts[name] for name in ("cpu", "wall")}


def run_peer(arguments: argparse.Namespace, bits: float, folder: Path) -> None:
    """One run of the worker, its output in FOLDER.log; SystemExit when it fails."""
    options = [arguments.uniform] if arguments.uniform else CHOICES
    task = {"model": str(arguments.model.resolve()), "bits": None if arguments.uniform else bits, "batch": BATCH}
    task |= {"options": [{"bits": b, "group_size": g, "sym": True} for b, g in options]}
    task |= {name: getattr(arguments, name) for name in ("iterations", "threads", "device", "compile", "amp")}
    for name, file in (("tokens", "tokens.safetensors"), ("weights", "weights.safetensors"), ("report", "report.json")):
        task[name] = str(folder / file)
    (folder / "task.json").write_text(json.dumps(task | {"scratch": str(folder / "scratch")}))
    python, environment = arguments.python, os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    if python is None:
        python = peer_python(arguments.env.expanduser(), PEER)
        environment.pop("PYTHONPATH", None)
    command = [str(python), str(HERE / "peer_autoround_worker.py"), str(folder / "task.json")]
    log = folder.with_suffix(".log")
    with log.open("w") as out:
        done = subprocess.run(command, check=False, env=environment, cwd=folder, stdout=out, stderr=out)
    if done.returncode:
        raise SystemExit(f"the peer failed, see {log}:\n{log.read_text()[-3000:]}")


def our_row(arguments: argparse.Namespace, budget: float, place: Path) -> Row:
    """Ours, in an empty store, up to the refined selection."""
    at = texts(arguments)
    MEMO.clear()  # what an earlier budget of this process left would be free
    cpu, wall = time.process_time(), time.perf_counter()
    bound = build(arguments, place, budget, arguments.tokens)
    runner, outputs = made(arguments, bound, ["distilled"])
    found: Row = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    load = runner.store.artifacts.load
    before, after = load(outputs["allocated"]["selection"]), load(outputs["distilled"]["selection"])
    for name, selection in (("before", before), ("kl", after)):
        found[name] = divergence(at, overlay(at["model"], selection), arguments.device)
    read = ("calibration", "scoring", "training")
    found["distinct"] = sum(load(outputs[n]["tokens"]).meta["tokens"] for n in read)
    found["trained"] = after.meta["distilled"]["tokens"]
    return found | sizes(at["model"], dict(rules_of(after)))


def table(rows: list[tuple[float, Row | None, Row | None]]) -> Iterator[str]:
    """Markdown, a line for each side of each budget."""
    heads = ["asked", "", "candidates", "bits per weight", "bytes", "KL", "of the peer's"]
    heads += ["distinct tokens", "tokens in training", "seconds"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for bits, theirs, ours in rows:
        for name, row in (("AutoRound", theirs), ("refined mixed build", ours)):
            if row is None:
                continue
            ratio = f"{row['kl'] / theirs['kl']:.3f}" if theirs and row is ours else ""
            seconds = row["cpu"] if row["device"] == "cpu" and row["threads"] == "1" else row["wall"]
            cells = [f"{bits:g}", name, f"{1 if row.get('uniform') else len(CHOICES)}"]
            cells += [f"{row['bpw']:.4f}", f"{row['bytes']:,}", f"{row['kl']:.5f}", ratio]
            cells += [f"{row['distinct']:,}", f"{row['trained']:,}", f"{seconds:.0f}"]
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

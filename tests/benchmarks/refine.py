"""What refinement gains on one plan, option by option: KL on text held out from training and on the evaluation text.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/refine.py --keep FOLDER [--tokens 98304] [--only NAME ...]
        [--formats int3-g64] [--bits 3.26] [--device cpu] [--write]

Every row starts from the same selection of the demo model, except the one whose candidates are rounded to nearest.
Training text is the split that the demo model was trained on, for more than 600,000 tokens with docstrings of installed
packages behind it; the evaluation text is never trained on. What a row
starts from is prepared in FOLDER (refine_inputs.py), which can then be taken to a machine with a GPU and little else:
`--device cuda`. Rows that are done are kept in FOLDER. `--write` puts the table into steps/distill/README.md. Seconds
are CPU seconds; of what ran on a GPU, elapsed ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from readme_table import lines_of, put
from refine_inputs import FORMATS, load, part, prepare

from pipelines.methods.refine import refinement_of
from schemas.base import digest_of
from schemas.distill import Distill, Recode
from schemas.verify import Evaluate
from steps.device import device_of
from steps.distill import recode
from steps.distill import run as distill
from steps.distill.schedule import held_out_of
from steps.step import Env, Value
from steps.verify import evaluate

SLOW = {"scales": 1e-3, "norms": 1e-3}
BLOCKS = {"kind": "blocks", "width": 1, "stride": 1}
OUTPUTS = [{"kind": "outputs"}]
STEPS = {"distill": (distill.run, Distill, "distilled"), "recode": (recode.run, Recode, "recoded")}
AGAIN: dict[str, Any] = {"recode": {}}
VARIANTS: dict[str, dict[str, Any]] = {
    "recode, then latent: codes, scales, norms (the default)": AGAIN,
    "recode alone": {**AGAIN, "train": False},
    "recode alone, 100 passes": {"recode": {"passes": 100}, "train": False},
    "recode alone, 3000 passes": {"recode": {"passes": 3000}, "train": False},
    "recode, then scales and norms": {**AGAIN, "rates": SLOW},
    "recode, then block by block": {**AGAIN, "scope": BLOCKS, "objective": OUTPUTS},
    "recode, then block by block, Fisher weights": {
        **AGAIN,
        "scope": BLOCKS,
        "objective": [{"kind": "outputs", "fisher": True}],
    },
    "latent alone: codes, scales, norms": {},
    "codes alone": {"rates": {"codes": "auto"}},
    "scales and norms alone": {"rates": SLOW},
    "scales and norms alone, at 3e-3": {"method": "scales"},
    "scales alone": {"rates": {"scales": 1e-3}},
    "codes three times as fast": {"rates": {**SLOW, "codes": 0.06}},
    "2-bit codes at half the rate": {"rates": {**SLOW, "codes": "auto", "by_bits": {"2": 0.5}}},
    "latents from the weights within the codes' cells": {"codes": {"kind": "ste", "start": "cell"}},
    "latents from the weights": {"codes": {"kind": "ste", "start": "weights"}},
    "from candidates rounded to nearest": {"candidates": "rtn"},
    "block by block": {"scope": BLOCKS, "objective": OUTPUTS},
    "block by block, Fisher weights": {"scope": BLOCKS, "objective": [{"kind": "outputs", "fisher": True}]},
    "windows of two blocks": {"scope": {"kind": "blocks", "width": 2}, "objective": OUTPUTS},
    "block by block, then end to end": {"scope": BLOCKS, "objective": OUTPUTS, "then": {}},
    "scales and norms, then codes with them": {"rates": SLOW, "then": {}},
    "bitdistiller": {"method": "bitdistiller"},
    "discquant": {"method": "discquant"},
    "adaquant": {"method": "adaquant"},
    "autoround": {"method": "autoround"},
    "pdquant": {"method": "pdquant"},
}


def main() -> None:
    """Measure what is asked and print the table."""
    arguments = parsed()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    rows = {name: row(arguments, name) for name in arguments.only or VARIANTS}
    lines = lines_of([cells(name, found) for name, found in rows.items()])
    print("\n".join(lines))
    if arguments.write:
        put(lines, Path("steps/distill/README.md"), "refine.py")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=98_304)
    parser.add_argument("--bits", type=float, default=3.26)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--only", nargs="+", choices=VARIANTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def surroundings(arguments: argparse.Namespace, method: str) -> dict[str, Value]:
    """model, selection, and tokens for training and evaluation: prepared here, or taken from where they were."""
    keep, formats, bits, tokens = arguments.keep, arguments.formats, arguments.bits, arguments.tokens
    return load(prepare(keep, formats, bits, method, tokens))


def row(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """One variant, measured once."""
    variant = dict(VARIANTS[name])
    about = [variant, arguments.tokens, arguments.bits, list(arguments.formats), arguments.device]
    path = arguments.keep / f"option-{digest_of(about)[:16]}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    at = surroundings(arguments, variant.pop("candidates", "gptq"))
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    started, env = clock(), Env(device_of(arguments.device))
    with TemporaryDirectory() as own:
        after, facts = refined(at, stages(variant), arguments.tokens, replace(env, scratch=Path(own)))
        seconds = clock() - started
        losses = {"before": kl(at, at["selection"], env), "after": kl(at, after, env)}
    found = {"seconds": seconds, **losses, "facts": facts}
    path.write_text(json.dumps(found))
    return found


def stages(variant: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of the steps: choosing codes again, a training, the one `then`; each a row with what differs from it."""
    one = {name: value for name, value in variant.items() if name not in ("then", "recode", "train")}
    spec = refinement_of(one.pop("method", "latent")).model_dump() | one
    first = [{"step": "recode", **variant["recode"]}] if "recode" in variant else []
    trained = [spec] if variant.get("train", True) else []
    return [*first, *trained, *(stages(variant["then"]) if "then" in variant else ())]


def refined(
    at: Mapping[str, Value], specs: Sequence[Mapping[str, Any]], tokens: int, env: Env
) -> tuple[Value, dict[str, Any]]:
    """The selection after all trainings, each on its own part of the text; facts of all, losses as ratios."""
    now, ratio, found = at["selection"], 1.0, list[Mapping[str, Any]]()
    windows, length = at["training"].tensors["ids_NS"].shape
    trainings = [each for each in specs if each["step"] == "distill"]
    size = windows // max(len(trainings), 1)
    for number, each in enumerate(specs):
        text, given, own = at["training"], dict(each), replace(env, scratch=env.scratch / str(number))
        if each["step"] == "distill":
            text = part(text, range(len(found) * size, (len(found) + 1) * size))
            fresh = (size - held_out_of(size, each["held_out"])) * length
            given["tokens"] = min(tokens // len(trainings), fresh)
        run, spec, name = STEPS[each["step"]]
        inputs = {"model": at["model"], "selection": now, "tokens": text}
        now = run(spec.model_validate(given), inputs, own)["selection"]  # type: ignore[arg-type]
        facts = now.meta[name]
        ratio *= facts["after"] / facts["before"]
        if each["step"] == "distill":
            found.append(facts)
    return now, {
        "ratio": ratio,
        "step_kept": sum(each["step_kept"] for each in found) if found else now.meta["recoded"]["moved"],
        "tokens": sum(each["tokens"] // len(each.get("blocks", [each])) for each in found),
        "passes": max((each["passes"] for each in found), default=0.0),
    }


def kl(at: Mapping[str, Value], selection: Value, env: Env) -> float:
    """Mean KL per predicted position of the evaluation text."""
    inputs = {"model": at["model"], "selection": selection, "tokens": at["evaluation"], "reference": at["reference"]}
    documents_of = evaluate.run(Evaluate(step="evaluate"), inputs, env)["evaluation"].meta["documents"]
    return float(sum(d["kl"] * d["tokens"] for d in documents_of) / sum(d["tokens"] for d in documents_of))


def cells(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    """A row of the table; ratios are after over before, a kept input is marked."""
    facts = found["facts"]
    return {
        "what is trained": name if facts["step_kept"] else f"{name} (input kept)",
        "KL before": f"{found['before']:.5f}",
        "KL after": f"{found['after']:.5f}",
        "ratio": f"{found['after'] / found['before']:.3f}",
        "held-out ratio": f"{facts['ratio']:.3f}",
        "tokens": f"{facts['tokens']:,}",
        "passes": f"{facts['passes']:.2f}",
        "seconds": f"{found['seconds']:.0f}",
    }


if __name__ == "__main__":
    main()

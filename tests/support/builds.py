"""A whole build small enough to run in seconds: a random two-block Llama, made-up text, three formats."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from models import tiny_value, write_model

from pipelines.build import Build, prepare
from pipelines.drive import Built, drive
from pipelines.settings import Settings

CONFIG = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 300}


def write_text(path: Path, documents: int, seed: int) -> Path:
    """JSONL of documents of made-up words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(80)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(documents)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Model, texts and a recipe in `folder`; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        write_model(folder / "model", tiny_value(tied=True, dtype=torch.bfloat16, **CONFIG), shards=2)
        write_text(folder / "calibrate.jsonl", 12, 1)
        write_text(folder / "evaluate.jsonl", 8, 2)
    recipe = {
        "name": "tiny",
        "model": {"source": str(folder / "model")},
        "text": {
            "calibrate": str(folder / "calibrate.jsonl"),
            "evaluate": str(folder / "evaluate.jsonl"),
            "length": 32,
            "calibrate_windows": 16,
            "score_windows": 6,
            "evaluate_windows": 8,
        },
        "budget": {"bits_per_weight": 3.8},
        "formats": ["int2-g32", "int3-g32", "int4-g64", "int8-g64"],
        "sensitivity": "kl_probe",
        "distill": {"tokens": 128, "batch": 2, "held_out": 6, "check_every": 1},
        "gates": {"beats_uniform": False},
        "samples": 0,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def places(folder: Path) -> Settings:
    """State, store and tracking in one folder."""
    return Settings(folder / "state", str(folder / "state" / "store"), f"sqlite:///{folder / 'mlflow.db'}", None)


def open_build(folder: Path, *assignments: tuple[str, Any], **changes: Any) -> Build:
    """The recipe in `folder`, prepared."""
    recipe = write_recipe(folder, **changes)
    build = prepare(str(recipe), list(assignments), places(folder), "cpu")
    build.runner.store.check_writable()
    return build


def run_build(build: Build) -> Built:
    """Run all nodes in this process, without Prefect."""
    return drive(build.runner, build.runner.execute)


def build_and_tell(folder: Path, changes: dict[str, Any], out: Path) -> None:
    """What another process does in a test: a build, whose outputs and computed items by node it writes as JSON."""
    built = run_build(open_build(folder, **changes))
    out.write_text(json.dumps([built.outputs, {r.id: r.units_computed for r in built.rows}]))

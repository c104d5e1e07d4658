"""A complete, small Report for tests of everything that reads one."""

from __future__ import annotations

import hashlib
from typing import Any

from schemas.refined import Distilled, DistilledBlock
from schemas.report import (
    AllocationRow,
    BitsPerWeight,
    Bytes,
    Contrast,
    GateRow,
    Interval,
    Measured,
    NodeRow,
    Packed,
    Report,
    Speed,
)


def digest(text: str) -> str:
    """Any 64 hex digits, one per text."""
    return hashlib.sha256(text.encode()).hexdigest()


def interval(value: float, spread: float = 0.1) -> Interval:
    """`value` with a plausible interval."""
    half = abs(value) * spread
    return Interval(value=value, low=value - half, high=value + half)


def measured(size: int, kl: float, ppl: float = 7.5, top1: float = 0.9) -> Measured:
    """One measured model."""
    return Measured(bytes=size, kl=interval(kl), ppl=interval(ppl, 0.02), top1=interval(top1, 0.01))


def allocation(blocks: int = 3) -> tuple[AllocationRow, ...]:
    """Four units per block in three formats."""
    rows = []
    for block in range(blocks):
        for k, module in enumerate(("self_attn.qkv", "self_attn.o_proj", "mlp.gate_up", "mlp.down_proj")):
            bits = (2, 3, 4)[(block + k) % 3]
            name = f"layers.{block}.{module}"
            rows.append(AllocationRow(unit=name, format=f"int{bits}-g64", bytes=1000 * bits, score=0.01 / bits))
    return tuple(rows)


def node(name: str, **changes: Any) -> NodeRow:
    """One computed node."""
    fields: dict[str, Any] = {
        "id": name,
        "step": name,
        "status": "computed",
        "seconds": 1.25,
        "key": digest(f"key {name}"),
        "units_computed": 12,
        "units_cached": 3,
        "outputs": {name: digest(f"output {name}")},
    }
    return NodeRow(**(fields | changes))


def example_report(**changes: Any) -> Report:
    """A build that passed, with its baselines."""
    fields: dict[str, Any] = {
        "build_digest": digest("build"),
        "recipe_digest": digest("recipe"),
        "recipe": "demo",
        "recipe_document": {"name": "demo", "nodes": {}},
        "model": "tiny",
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 61.5,
        "bpw": BitsPerWeight(linear=2.99, total=4.5),
        "bytes": Bytes(predicted=36500, actual=36500, header=2400),
        "original": measured(200_000, 0.0, 7.0, 1.0),
        "mixed": measured(36_500, 0.021),
        "allocated": measured(36_500, 0.025),
        "uniform": measured(36_400, 0.04),
        "uniform_format": "int3-g64",
        "greedy": measured(36_450, 0.026),
        "contrasts": (
            Contrast(
                first="allocated",
                second="uniform",
                difference=interval(-0.015),
                ratio=interval(0.625),
                verdict="better",
            ),
        ),
        "predicted_kl": 0.024,
        "distilled": None,
        "allocation": allocation(),
        "certificate": {
            "allocator": "ilp",
            "objective": 0.024,
            "bound": 0.024,
            "gap": 0.0,
            "proof": "integer program",
            "limits": [{"name": "bytes of linears", "binds": True}],
            "shadow_price": {"kl_per_byte": 1e-8, "text": "10 kB more buys 0.0001 KL"},
            "baselines": {"random": {"samples": 32, "mean_score": 0.2, "best_score": 0.1}},
            "stability": {"agreement": 0.9, "resamples": 100, "documents": 24},
        },
        "nodes": (node("quantize"), node("allocate", status="cached", units_computed=0, units_cached=1)),
        "gates": (GateRow(name="max_kl", limit=0.05, value=0.021, passed=True),),
        "passed": True,
        "packed": Packed(path="/builds/demo", digest=digest("packed")),
        "speed": Speed(prefill_tokens_per_second=900.0, decode_tokens_per_second=31.0, peak_memory_bytes=300_000_000),
        "device": "cpu",
        "notes": ("context capped to 128 tokens",),
        "libraries": {"torch": "2.13.0"},
        "mlflow_run_id": None,
        "prefect_flow_run_id": "0f0e",
    }
    return Report(**(fields | changes))


def trained_report(blocks: int = 0) -> Report:
    """A report of a refinement end to end, or of one block after the other."""
    curve = (
        {"step": 0, "held_out": 0.05},
        *({"step": k, "held_out": 0.05 - k / 1000, "train": 0.04} for k in (10, 20)),
    )
    facts: dict[str, Any] = {"before": 0.05, "after": 0.03, "step_kept": 20}
    if not blocks:
        return example_report(distilled=Distilled(**facts, tokens=65536, curve=curve, gap=-0.01))
    each = tuple(DistilledBlock(first_block=k, **facts, curve=curve, gap=k / 1000) for k in range(blocks))
    return example_report(distilled=Distilled(**facts, tokens=65536, blocks=each))

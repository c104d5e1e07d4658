"""What a dequantized model costs and how far it is from the original: one rule and one measure for every side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from schemas.calibrate import Reference
from steps.calibrate.reference import run as reference
from steps.model.overlay import NORMS
from steps.model.positions import predicted_positions
from steps.model.stream import Stream
from steps.quantize.qtensor import affine, from_value
from steps.step import Env, Value
from steps.verify.metrics import compare

Rule = tuple[int, int, bool]
"""Bits, group size, no zero points."""


def divergence(at: Mapping[str, Value], changed: Value, device: str) -> float:
    """Mean KL(original || changed) over the predicted positions of the evaluation windows."""
    env = Env(torch.device(device))
    found = reference(Reference(step="reference"), {"model": changed, "tokens": at["evaluation"]}, env)["reference"]
    original, student = Stream(at["model"], env.device), Stream(changed, env.device)
    original_TD, student_TD = at["reference"].tensors["hidden_TD"], found.tensors["hidden_TD"]
    positions = predicted_positions(at["evaluation"])
    comparison = compare(
        lambda rows: original.logits(original_TD[positions.valid_P[rows]].to(env.device)),
        lambda rows: student.logits(student_TD[positions.valid_P[rows]].to(env.device)),
        positions,
        original.config.vocab_size,
    )
    return float(comparison.kl_P.double().mean())


def weight_bytes(shape: torch.Size, rule: Rule) -> int:
    """Codes, a 16-bit scale for every group, a zero point of the code's width where there is one."""
    bits, group, symmetric = rule
    rows, columns = shape
    groups = rows * -(-columns // group)
    return rows * -(-columns * bits // 8) + 2 * groups + (0 if symmetric else -(-groups * bits // 8))


def sizes(model: Value, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Bytes and bits per weight of the quantized linears, and how many linears have which width."""
    shapes = {name: model.tensors[f"{name}.weight"].shape for name in rules}
    total = sum(weight_bytes(shapes[name], rule) for name, rule in rules.items())
    widths = [rule[0] for rule in rules.values()]
    count = {f"{bits}": widths.count(bits) for bits in sorted(set(widths))}
    return {"bytes": total, "bpw": 8 * total / sum(s.numel() for s in shapes.values()), "widths": count}


def check_levels(name: str, weight_OI: torch.Tensor, rule: Rule) -> None:
    """SystemExit when a group has more values than its bits can tell apart: then its bytes are not what we count."""
    bits, group, _ = rule
    values = weight_OI.reshape(-1, group).sort(dim=1).values
    most = int((values[:, 1:] != values[:, :-1]).sum(dim=1).max()) + 1
    if most > 2**bits:
        raise SystemExit(f"{name}: {most} values in one group of {group}; {bits} bits tell {2**bits} apart")


def rules_of(selection: Value) -> Iterator[tuple[str, Rule]]:
    """How each linear of a selection is stored."""
    for unit, item in selection.children.items():
        for member in item.meta["members"] if unit != NORMS else ():
            fmt = affine(from_value(item, member), "this comparison").format
            assert fmt.group_size != "row"
            yield member, (fmt.bits, fmt.group_size, fmt.symmetry != "asymmetric")

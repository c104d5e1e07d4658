"""Everything that can be found wrong, or foretold, in seconds: before any weights are read or torch is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.build import Build
from pipelines.graph import Bound
from schemas.allocate import Allocate
from schemas.artifact import Unit
from schemas.base import Spec
from schemas.budget import Budget
from schemas.calibrate import Tokenize
from schemas.errors import InputError
from schemas.quantize import Quantize
from schemas.recipe import Recipe
from steps.allocate.limits import Achievable
from steps.allocate.preflight import check as check_allocation
from steps.model.structure import max_length, units
from steps.pack.quantization_config import refusals
from steps.pack.sizes import groups, unit_bytes, weights_of

S = TypeVar("S", bound=Spec)
FP32, BF16 = 4, 2
SPARE_DISK = 64 * 2**20
"""Room left for tokens, traces and databases, in bytes."""


@dataclass(frozen=True)
class Forecast:
    """The sizes that plans can have (least, most), what a build will take in bytes, and what a user should know."""

    packed_bytes: tuple[int, int]
    linear_bits_per_weight: tuple[float, float]
    file_bits_per_weight: tuple[float, float]
    disk_needed: int
    disk_free: int | None
    memory_needed: int
    memory_free: int | None
    notes: tuple[str, ...]


def check(build: Build) -> Forecast:
    """Raise InputError for the first thing that cannot work; else say what the build will take."""
    runner, recipe = build.runner, build.recipe
    runner.store.check_writable()
    candidates, quantize = _one(runner.bound, Quantize)
    _, allocate = _one(runner.bound, Allocate)
    model = runner.source(candidates.inputs["model"][0])
    _check_texts_are_disjoint(build)
    _check_formats(f"recipe {recipe.name}, node {candidates.id}", quantize, allocate, model.meta)
    found = units(model.meta["config"], model.meta["shapes"])
    reach = check_allocation(
        found,
        quantize.formats,
        allocate.pack,
        model.meta["config"],
        model.meta["shapes"],
        model.meta["dtypes"],
        allocate.budget,
        allocate.pins,
    )
    _check_not_above(allocate.budget, reach)
    forecast = Forecast(
        packed_bytes=reach.file_bytes,
        linear_bits_per_weight=reach.linear_bits_per_weight,
        file_bits_per_weight=reach.file_bits_per_weight,
        disk_needed=_disk(quantize, found, model.meta) + reach.file_bytes[1] + SPARE_DISK,
        disk_free=_free_disk(build.where.store),
        memory_needed=_memory(recipe, found, model.meta),
        memory_free=_free_memory(),
        notes=tuple(_length_notes(recipe, model.meta)),
    )
    if forecast.disk_free is not None and forecast.disk_free < forecast.disk_needed:
        raise InputError(
            "not enough room in the store",
            where=build.where.store,
            got=f"{forecast.disk_free:,} bytes free",
            wanted=f"about {forecast.disk_needed:,} bytes",
            fix="free some, choose another place with --store, or try fewer formats",
        )
    return forecast


def _check_not_above(budget: Budget, reach: Achievable) -> None:
    """A budget that every plan meets leaves nothing to allocate; with a single possible plan that is no mistake."""
    bits = reach.linear_bits_per_weight if budget.over == "linears" else reach.file_bits_per_weight
    limits = [(budget.bits_per_weight, bits, "bits per weight"), (budget.bytes, reach.file_bytes, "bytes")]
    given = [(limit, span, unit) for limit, span, unit in limits if limit is not None]
    if not given or budget.max_predicted_kl is not None or reach.file_bytes[0] == reach.file_bytes[1]:
        return
    if all(limit > span[1] for limit, span, _ in given):
        limit, (least, most), unit = given[0]
        raise InputError(
            "the budget is above what the largest plan takes",
            where="budget",
            got=f"{limit:,} {unit}",
            wanted=f"{least:,.4f} to {most:,.4f} {unit}"
            if isinstance(least, float)
            else f"{least:,} to {most:,} {unit}",
            fix="lower the budget, or add larger formats",
        )


def _one(bound: list[Bound], kind: type[S]) -> tuple[Bound, S]:
    found = [(b, b.node.spec) for b in bound if isinstance(b.node.spec, kind)]
    if len(found) != 1:
        raise InputError(
            f"a build needs exactly one {kind.__name__.lower()} node", got=", ".join(b.id for b, _ in found) or "none"
        )
    return found[0]


def _check_formats(where: str, quantize: Quantize, allocate: Allocate, meta: Mapping[str, Any]) -> None:
    """Every format is one that the pack format's loader takes and that divides every row."""
    found = units(meta["config"], meta["shapes"])
    formats = quantize.formats
    for unit in found:
        for fmt in formats:
            for member, shape in zip(unit.members, unit.shapes, strict=True):
                groups(fmt, shape, member)
    if reasons := refusals(formats, meta["config"]):
        raise InputError(
            f"{allocate.pack} cannot hold this build",
            where=where,
            got="; ".join(reasons),
            fix="change the formats as named",
        )


def _check_texts_are_disjoint(build: Build) -> None:
    """Evaluation documents must not be among those that were calibrated or trained on."""
    runner = build.runner
    texts = [b for b in runner.bound if b.node.spec.step == "text"]
    users: dict[str, set[str]] = {b.id: set() for b in texts}
    for bound in runner.bound:
        if isinstance(bound.node.spec, Tokenize):
            readers = {b.node.spec.step for b in runner.bound if (bound.id, "tokens") in b.inputs.values()}
            users[bound.inputs["text"][0]] |= readers
    seen = {t.id: set(runner.source(t.id).meta["digests"]) for t in texts}
    held_out = [t for t in seen if users[t] & {"verify", "evaluate"}]
    for first in held_out:
        for second in seen:
            if users[second] & {"calibrate", "distill", "kl_probe", "fisher"} and (
                shared := seen[first] & seen[second]
            ):
                raise InputError(
                    "evaluation text must be held out",
                    where=f"nodes {first} and {second}",
                    got=f"{len(shared)} document(s) in both",
                    wanted="disjoint documents",
                    fix="choose another text for one of them",
                )


def _length_notes(recipe: Recipe, meta: Mapping[str, Any]) -> Iterator[str]:
    limit = max_length(meta["config"])
    for name, node in recipe.nodes.items():
        if isinstance(node.spec, Tokenize) and node.spec.length > limit:
            yield f"{name}: windows of {node.spec.length} tokens are capped at the model's {limit}"


def _disk(spec: Quantize, found: list[Unit], meta: Mapping[str, Any]) -> int:
    """Candidates of every unit in every format, and the Hessians."""
    tensors = sum(unit_bytes("compressed-tensors", f, u) for u in found for f in spec.formats)
    hessians = sum(FP32 * u.shapes[0][1] ** 2 for u in found)
    return tensors + hessians


def _memory(recipe: Recipe, found: list[Unit], meta: Mapping[str, Any]) -> int:
    """The largest block in fp32 with its Hessians, or the whole model where a step needs it resident.

    `verify` holds it in its own dtype and widens it to fp32; `kl_probe` and `distill` hold it in fp32 twice.
    """
    blocks: dict[int, int] = {}
    for unit in found:
        weights = sum(rows * columns for rows, columns in unit.shapes)
        blocks[unit.block] = blocks.get(unit.block, 0) + FP32 * weights + 2 * FP32 * unit.shapes[0][1] ** 2
    whole = {n.spec.step for n in recipe.nodes.values()} & {"kl_probe", "distill"}
    resident = (2 * FP32 if whole else BF16 + FP32) * weights_of(meta["shapes"])
    return max(*blocks.values(), resident)


def _free_disk(url: str) -> int | None:
    if "://" in url:
        return None
    folder = next(p for p in (Path(url), *Path(url).resolve().parents) if p.exists())
    return shutil.disk_usage(folder).free


def _free_memory() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None

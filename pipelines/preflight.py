"""Everything that can be found wrong, or foretold, in seconds: before any weights are read or torch is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.build import Build
from pipelines.graph import Bound
from pipelines.held_out import check_held_out
from pipelines.memory import memory, scratch
from pipelines.packings import engine_notes
from pipelines.supply import as_found
from pipelines.training import check_memory, memory_needed, text_notes
from schemas.allocate import Allocate, Pin
from schemas.artifact import Unit
from schemas.base import Spec
from schemas.budget import Budget
from schemas.calibrate import Tokenize
from schemas.errors import InputError
from schemas.format import Format
from schemas.pack import Pack
from schemas.quantize import Quantize
from schemas.recipe import Recipe
from schemas.verify import Generate, Verify
from steps.allocate.limits import Achievable
from steps.allocate.pins import check_pins
from steps.allocate.preflight import check as check_allocation
from steps.model.offers import Offer, offers
from steps.model.structure import max_length
from steps.pack.engines import model_refusals, refusals
from steps.pack.sizes import groups, metadata_size, unit_bytes
from steps.step import Value
from steps.verify.loading import BY_BLOCKS, asked, whole_bytes

S = TypeVar("S", bound=Spec)
FP32 = 4
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
    scratch_needed: int
    scratch_free: int | None
    memory_needed: int
    memory_free: int | None
    notes: tuple[str, ...]


def check(build: Build, here: bool = True) -> Forecast:
    """Raise InputError for the first thing that cannot work; else say what the build will take.

    `here`: its steps run on this machine, so that it is this one's memory that counts.
    """
    runner, recipe = build.runner, build.recipe
    runner.store.check_writable()
    candidates, quantize = _one(runner.bound, Quantize)
    _, allocate = _one(runner.bound, Allocate)
    model = runner.source(candidates.inputs["model"][0])
    check_held_out(runner)
    offered = offers(model.meta["config"], model.meta["shapes"], quantize)
    _check_formats(recipe, offered, allocate.pins, model)
    reach = check_allocation(
        offered,
        allocate.pack,
        model.meta["config"],
        model.meta["shapes"],
        model.meta["dtypes"],
        allocate.budget,
        allocate.pins,
        allocate.shard_bytes,
        metadata_size(allocate.pack, model.meta["config"], model.files),
        allocate.allocator,
    )
    _check_not_above(allocate.budget, reach)
    if here:
        check_memory(runner)
    found = as_found(runner)
    forecast = Forecast(
        packed_bytes=reach.file_bytes,
        linear_bits_per_weight=reach.linear_bits_per_weight,
        file_bits_per_weight=reach.file_bits_per_weight,
        disk_needed=_disk(offered) + reach.file_bytes[1] + SPARE_DISK,
        disk_free=_free_disk(build.where.store),
        scratch_needed=scratch(found, model.meta),
        scratch_free=_free_disk(str(build.where.cache)),
        memory_needed=max([memory(found, offered, model.meta), *memory_needed(runner).values()]),
        memory_free=_free_memory(),
        notes=(
            *_length_notes(recipe, model.meta),
            *engine_notes(recipe, quantize.formats),
            *text_notes(runner),
            *_loading_notes(recipe, model.meta),
        ),
    )
    _check_room(
        "not enough room in the store",
        build.where.store,
        (forecast.disk_free, forecast.disk_needed),
        "free some, choose another place with --store, or try fewer formats",
    )
    if here:
        _check_room(
            "not enough room for what enters each block, which a backward pass puts aside",
            str(build.where.cache),
            (forecast.scratch_free, forecast.scratch_needed),
            "free some, choose another place with BITSMITH_HOME, or take fewer windows of text",
        )
    return forecast


def _check_room(what: str, where: str, free_needed: tuple[int | None, int], fix: str) -> None:
    free, needed = free_needed
    if free is not None and free < needed:
        raise InputError(what, where=where, got=f"{free:,} bytes free", wanted=f"about {needed:,} bytes", fix=fix)


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
    """The node of a kind; several with the same spec, as of two rounds, count as one."""
    found = [(b, b.node.spec) for b in bound if isinstance(b.node.spec, kind)]
    if not found or any(spec != found[0][1] for _, spec in found):
        raise InputError(
            f"a build needs exactly one {kind.__name__.lower()} node", got=", ".join(b.id for b, _ in found) or "none"
        )
    return found[0]


def _check_formats(recipe: Recipe, offered: Sequence[Offer], pins: Sequence[Pin], model: Value) -> None:
    """Every format divides every row, and those that pins leave a unit are ones that each file's engine takes."""
    alike: dict[tuple[Format, ...], list[Unit]] = {}
    formats = list(dict.fromkeys(fmt for offer in offered for fmt in offer.formats))
    left = check_pins([offer.unit for offer in offered], formats, pins)
    for offer in offered:
        allowed = tuple(fmt for fmt in offer.formats if fmt.name in left[offer.unit.name])
        alike.setdefault(allowed, []).append(offer.unit)
        for fmt in offer.formats:
            for member, shape in zip(offer.unit.members, offer.unit.shapes, strict=True):
                groups(fmt, shape, member)
    for name, node in recipe.nodes.items():
        spec = node.spec
        if not isinstance(spec, Pack):
            continue
        config = model.meta["config"]
        reasons = [r for f, u in alike.items() for r in refusals(spec.format, f, config, u, spec.target)]
        reasons += model_refusals(spec.format, config, model.files)
        if reasons:
            raise InputError(
                f"{spec.format} cannot hold this build",
                where=f"recipe {recipe.name}, node {name}",
                got="; ".join(dict.fromkeys(reasons)),
                fix="change the formats as named, or pack to another file format",
            )


def _length_notes(recipe: Recipe, meta: Mapping[str, Any]) -> Iterator[str]:
    limit = max_length(meta["config"])
    for name, node in recipe.nodes.items():
        if isinstance(node.spec, Tokenize) and node.spec.length > limit:
            yield f"{name}: windows of {node.spec.length} tokens are capped at the model's {limit}"


def _loading_notes(recipe: Recipe, meta: Mapping[str, Any]) -> Iterator[str]:
    for name, node in recipe.nodes.items():
        if isinstance(node.spec, Verify | Generate) and asked(node.spec, meta["shapes"]) == "blocks":
            lacks = "speed is not measured" if isinstance(node.spec, Verify) else "nothing is generated"
            yield f"{name}: {lacks}, {BY_BLOCKS} (load: whole loads {whole_bytes(meta['shapes']) / 1e9:.1f} GB of fp32)"


def _disk(offered: Sequence[Offer]) -> int:
    """Candidates of every unit in every format, and the Hessians, one per input that a block's linears share."""
    tensors = sum(unit_bytes("bitsmith", fmt, offer.unit) for offer in offered for fmt in offer.formats)
    inputs = {
        (offer.unit.block, name): shape[1]
        for offer in offered
        for name, shape in zip(offer.unit.statistics, offer.unit.shapes, strict=True)
    }
    return tensors + sum(FP32 * width**2 for width in inputs.values())


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

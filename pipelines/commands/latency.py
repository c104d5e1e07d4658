"""`bitsmith latency`: measure how long every linear of a model takes in every format, on this device."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from pipelines.commands.run import write_json
from pipelines.recipe_file import parse_assignment
from pipelines.settings import settings
from pipelines.show import show_plan
from schemas.allocate import Allocate
from schemas.errors import InputError
from schemas.format import Format, read_format
from schemas.pack import PackFormat
from schemas.quantize import Quantize
from schemas.timings import MeasuredTiming, TimingTable

NOISY = 0.1
"""Half the middle half of samples over their median beyond which a timing is called noisy."""
_SHAPE = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")

Cell = tuple[tuple[int, int], Format]


def latency(options: argparse.Namespace) -> int:
    """Measure, print, and with --json write a table that `budget.latency.table` reads."""
    cells, pack, dtype = _asked(options)
    table = measure(cells, pack, dtype, options)
    if options.json is not None:
        write_json(options.json, table.model_dump(mode="json"))
    rows = [
        {
            "shape": f"{row.shape[0]}x{row.shape[1]}",
            "format": row.format.name,
            "microseconds": f"{row.microseconds:,.1f}",
            "noise": f"{row.noise:.1%}",
            "samples": row.samples,
        }
        for row in table.timings
    ]
    show_plan(rows, title=f"{table.engine} on {table.device}, {table.dtype}, {table.tokens} token(s) at once")
    noisy = sum(row.noise > NOISY for row in table.timings)
    if noisy:
        print(f"{noisy} of {len(rows)} timings vary by more than {NOISY:.0%}: let nothing else run, or raise --seconds")
    return 0


def _asked(options: argparse.Namespace) -> tuple[list[Cell], PackFormat, str]:
    """What a recipe needs to know, or what --shapes and --formats say."""
    if (options.recipe is None) == (options.shapes is None):
        raise InputError("give a recipe, or --shapes and --formats", where="latency", wanted="one of the two")
    if options.recipe is not None:
        return _of_recipe(options)
    if options.formats is None:
        raise InputError("--shapes needs --formats", where="--formats", wanted="for example int3-g64,int4-g64")
    cells = [(shape, fmt) for shape in _shapes(options.shapes) for fmt in _formats(options.formats)]
    return list(dict.fromkeys(cells)), options.pack or "bitsmith", options.dtype or "bfloat16"


def _of_recipe(options: argparse.Namespace) -> tuple[list[Cell], PackFormat, str]:
    from pipelines.build import prepare
    from steps.model.offers import offers
    from steps.pack.sizes import model_dtype

    where = settings(options.store, None)
    build = prepare(options.recipe, [parse_assignment(a) for a in options.set], where)
    quantize = next(b for b in build.runner.bound if isinstance(b.node.spec, Quantize))
    packs = [b.node.spec.pack for b in build.runner.bound if isinstance(b.node.spec, Allocate)]
    meta = build.runner.source(quantize.inputs["model"][0]).meta
    assert isinstance(quantize.node.spec, Quantize)
    offered = [offer for offer in offers(meta["config"], meta["shapes"], quantize.node.spec)]
    cells = [(shape, fmt) for o in offered if o.unit.use != "embedding" for shape in o.unit.shapes for fmt in o.formats]
    pack = options.pack or (packs[0] if packs else "bitsmith")
    return list(dict.fromkeys(cells)), pack, options.dtype or model_dtype(meta["config"]) or "float32"


def _shapes(text: str) -> Iterator[tuple[int, int]]:
    for part in text.split(","):
        match = _SHAPE.fullmatch(part.strip())
        if match is None:
            raise InputError("not a shape", where="--shapes", got=part, wanted="OUTPUTSxINPUTS, for example 4096x1024")
        yield int(match[1]), int(match[2])


def _formats(text: str) -> Iterator[Format]:
    for part in text.split(","):
        try:
            yield read_format(part.strip())
        except ValueError as error:
            raise InputError("not a format", where="--formats", got=part, wanted="for example int4-g64") from error


def _check_room(cells: list[Cell], tokens: int, device: str) -> None:
    """InputError for a linear that memory does not take, in fp32 with its input and output."""
    from steps.distill.memory import available_bytes

    available = available_bytes(device)
    for (outputs, inputs), _ in cells:
        needed = 4 * (outputs * inputs + tokens * (outputs + inputs))
        if available is not None and needed > available:
            raise InputError(
                "a linear does not fit in memory",
                where=f"{outputs}x{inputs}, {tokens} token(s) at once",
                got=f"{available} bytes available",
                wanted=f"{needed} bytes",
                fix="time fewer tokens, or a smaller linear",
            )


def measure(cells: list[Cell], pack: PackFormat, dtype: str, options: argparse.Namespace) -> TimingTable:
    """Every cell, one after the other."""
    import torch

    from steps.device import device_of
    from steps.pack.sizes import groups
    from steps.verify.run import device_name
    from steps.verify.timing import serving_linear, time_linear

    device, kind = device_of(options.device), getattr(torch, dtype)
    _check_room(cells, options.tokens, device)
    rows = []
    for shape, fmt in cells:
        groups(fmt, shape, f"{shape[0]}x{shape[1]}")
        linear = serving_linear(pack, fmt, shape, kind, device)
        found = time_linear(linear, shape[1], options.tokens, kind, device, options.seconds)
        rows.append(
            MeasuredTiming(
                shape=shape,
                format=fmt,
                microseconds=found.microseconds,
                noise=found.noise,
                samples=found.samples,
            )
        )
    return TimingTable(
        device=device_name(device),
        engine=type(linear).__name__,
        pack=pack,
        dtype=dtype,
        tokens=options.tokens,
        threads=torch.get_num_threads(),
        timings=tuple(rows),
    )

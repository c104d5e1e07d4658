"""`bitsmith reproduce`: compute a sample of a build's quantized units again and compare them byte by byte."""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.commands.lineage import shorten
from pipelines.items import Item
from pipelines.origins import Origins, open_origins
from pipelines.recorded import Recorded, reopen
from pipelines.run import Place
from pipelines.settings import settings
from schemas.distill import Distill, Recode, Reconstruct
from schemas.errors import InputError
from store.errors import Unavailable
from store.open import Store
from store.stored import StoredArtifact
from store.traces import Trace

DIFFERENT = 1


@dataclass(frozen=True)
class Compared:
    """One unit. `differing`: names of tensors and facts that are not equal; `versions`: code and libraries, old -> new
    where they changed."""

    label: str
    digest: str
    same: bool
    differing: tuple[str, ...]
    versions: str


def reproduce(options: argparse.Namespace) -> int:
    """0 when every unit of the sample comes out the same, 1 when one does not. Nothing is recorded."""
    where = settings(options.store)
    origins = open_origins(where.store)
    found = origins.find(options.what)
    if found.build is None:
        raise InputError("no recorded build packed this", where=where.store, got=options.what, wanted="a build")
    recorded = reopen(found.build, origins.store, Place(options.device, where.cache))
    chosen = recorded.chosen()
    sample = sorted(random.Random(options.seed).sample(sorted(chosen), min(options.sample, len(chosen))))
    print(f"build {found.build.digest[:12]}: {len(sample)} of {len(chosen)} quantized units, computed again")
    results = [compare(recorded, origins, *chosen[unit]) for unit in sample]
    for result in results:
        print(line(result))
    if any(isinstance(bound.node.spec, Recode | Distill | Reconstruct) for bound in recorded.runner.bound):
        print("as they were before refinement, which is not done again")
    print(f"{sum(r.same for r in results)} same, {sum(not r.same for r in results)} different")
    return 0 if all(r.same for r in results) else DIFFERENT


def compare(recorded: Recorded, origins: Origins, item: Item, digest: str) -> Compared:
    """Run one item, keep its output in a store that is thrown away, and compare."""
    trace = _trace(origins, item, digest)
    if trace is not None and trace.document["inputs"] != item.document["inputs"]:
        raise InputError(
            "the recorded inputs are not at hand",
            where=item.place.label,
            got=item.document["inputs"],
            wanted=trace.document["inputs"],
        )
    with tempfile.TemporaryDirectory(prefix="bitsmith-reproduce-") as folder:
        scratch = Store(Path(folder))
        outputs = recorded.runner.call(item, scratch.artifacts)
        now = scratch.artifacts.load(outputs["candidates"])
        differing = () if now.digest == digest else _differing(origins.store.artifacts.load(digest), now)
        return Compared(item.place.label, digest, now.digest == digest, differing, _versions(trace, item))


def _trace(origins: Origins, item: Item, digest: str) -> Trace | None:
    """The record of this very call if it is there, else the newest that gave this output."""
    own = next((t for t in origins.traces if t.key == item.key and digest in t.outputs.values()), None)
    return own or origins.makers.get(digest)


def _differing(then: StoredArtifact, now: StoredArtifact) -> tuple[str, ...]:
    try:
        old = {name: row.sha256 for name, row in then.tensors.rows.items()}
        facts = ["its facts"] if then.meta != now.meta else []
    except Unavailable:
        return ("what was recorded is no longer in the store",)
    new = {name: row.sha256 for name, row in now.tensors.rows.items()}
    return (*sorted(name for name in old | new if old.get(name) != new.get(name)), *facts)


def _versions(trace: Trace | None, item: Item) -> str:
    if trace is None:
        return "made by unknown code: its trace is gone"
    then, now = ({"code": shorten(d["code"]), **d["libraries"]} for d in (trace.document, item.document))
    names = dict.fromkeys([*then, *now])
    told = [
        f"{n} {then.get(n)}" + ("" if then.get(n) == now.get(n) else f" -> {now.get(n, 'not used')}") for n in names
    ]
    return ", ".join(told)


def line(result: Compared) -> str:
    """One unit in words."""
    word = "same" if result.same else "DIFFERENT"
    what = f": {', '.join(result.differing[:4])}" if result.differing else ""
    return f"{word:9} {result.label} {result.digest[:12]} ({result.versions}){what}"

"""`bitsmith verify`: is a packed folder what was built, and does it measure what its build says?"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.commands.run import write_json
from pipelines.graph import Bound
from pipelines.origins import Found, open_origins
from pipelines.recorded import Recorded, reopen
from pipelines.run import Place
from pipelines.settings import Settings, settings
from pipelines.sources import open_source_model, open_source_text
from schemas.calibrate import ModelSource, TextSource
from schemas.errors import InputError
from schemas.verify import Verify
from steps.device import device_of
from steps.step import Env, Value
from steps.verify.integrity import check_folder
from steps.verify.options import check_options
from steps.verify.show import lines

DIFFERENT = 1
TOLERANCE = 0.01
"""Relative difference from the recorded KL that another machine's order of summation may make, and more."""
ENGINE_KL = {"transformers": 0.0, "llama.cpp": 1e-5}
"""KL of an engine's own arithmetic from exact arithmetic: llama.cpp rounds activations to 8 bits (5e-6 was measured on
a 6M Llama). KL is a squared distance to second order, so square roots add up."""


def verify(options: argparse.Namespace) -> int:
    """0 when the folder is sound and measures what is recorded, 1 when it measures something else."""
    folder = Path(os.path.expanduser(options.what))
    folder = folder.parent if folder.is_file() else folder
    check_options(options)
    where = settings(options.store)
    found: dict[str, Any] = {"folder": str(folder), "sound": asdict(check_folder(folder))}
    if options.tasks:
        from steps.verify.tasks import check_whole

        check_whole(folder, options.load)
    if not options.quick and (options.model is None or options.text is not None):
        found |= _measure(options, folder, where)
    if options.tasks:
        found["tasks"] = _tasks(options, folder, where)
    print("\n".join([*lines(found), *_said(found)]))
    if options.json is not None:
        write_json(options.json, found)
    return 0 if found.get("as_recorded", True) else DIFFERENT


def _tasks(options: argparse.Namespace, folder: Path, where: Settings) -> dict[str, Any]:
    from steps.verify.tasks import measure_tasks

    model = None
    if options.model is not None:
        model = open_source_model(ModelSource(step="model", source=options.model), where.cache)
    return measure_tasks(folder, options.tasks, model, device_of(options.device), options.limit)


def _measure(options: argparse.Namespace, folder: Path, where: Settings) -> dict[str, Any]:
    """Against the original that is named, else against that of the build which packed the folder, if it is known."""
    from steps.verify.folder import measure_folder, tokens_of

    device = device_of(options.device)
    with tempfile.TemporaryDirectory(prefix="bitsmith-verify-") as scratch:
        env = Env(device=device, scratch=Path(scratch))
        if options.model is not None:
            model = open_source_model(ModelSource(step="model", source=options.model), where.cache)
            text = open_source_text(TextSource(step="text", source=options.text), where.cache)
            tokens = tokens_of(model, text, options.length, options.windows, env)
            return {"measured": measure_folder(folder, model, tokens, env, engine=options.engine, load=options.load)}
        known = _known(folder, where)
        if known is None:
            return {"note": "not measured: no build in the store packed this; name --model and --text"}
        recorded, inputs, kl = known
        measured = measure_folder(
            folder,
            inputs["model"],
            inputs["tokens"],
            env,
            reference=inputs["reference"],
            selection=inputs["selection"],
            engine=options.engine,
            load=options.load,
        )
    difference = abs(math.sqrt(measured["mixed"]["kl"]["value"]) - math.sqrt(kl))
    allowed = TOLERANCE / 2 * math.sqrt(kl) + math.sqrt(ENGINE_KL[options.engine])
    same = difference <= allowed and not measured["different"]
    return {"measured": measured, "build": recorded.report.build_digest, "recorded_kl": kl, "as_recorded": same}


def _known(folder: Path, where: Settings) -> tuple[Recorded, Mapping[str, Value], float] | None:
    """The build that packed a folder, what its verify node was handed, and the KL that it found."""
    try:
        origins = open_origins(where.store)
        found: Found = origins.find(str(folder))
    except InputError:
        return None
    if found.build is None:
        return None
    recorded = reopen(found.build, origins.store, Place("cpu", where.cache))
    verifier = _verifier(recorded, found.digest)
    inputs = recorded.runner.handles(verifier, recorded.outputs)
    verdict = origins.meta(recorded.outputs[verifier.id]["verdict"])
    return recorded, inputs, float(verdict["metrics"]["mixed"]["kl"]["value"])


def _verifier(recorded: Recorded, packed: str) -> Bound:
    """The node that measured this packed artifact."""
    for bound in recorded.runner.bound:
        if isinstance(bound.node.spec, Verify):
            node, port = bound.inputs["packed"]
            if recorded.outputs[node][port] == packed:
                return bound
    raise InputError("the build did not measure this file", where=recorded.report.build_digest[:12])


def _said(found: Mapping[str, Any]) -> list[str]:
    if "note" in found:
        return [str(found["note"])]
    if "recorded_kl" not in found:
        return []
    different = found["measured"]["different"]
    weights = "every loaded weight is equal"
    if different is None:
        weights = "weights are not compared in this engine"
    elif different:
        weights = f"{len(different)} loaded weights differ: {different[0]}"
    verdict = "as recorded" if found["as_recorded"] else "NOT as recorded"
    return [f"{verdict}: KL {found['recorded_kl']:.5f} in build {found['build'][:12]}; {weights}"]

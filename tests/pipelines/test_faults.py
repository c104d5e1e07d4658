"""Builds that fail in the middle, and builds on a store that fails half of the time."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from builds import open_build, run_build
from flaky import Flaky

from pipelines.drive import Built
from store import open as opening
from store import retry, verified
from store.fsck import fsck
from store.remote import RemoteFolder

SMALL: dict[str, Any] = {"formats": ["int2-g32", "int4-g64"], "distill": None, "budget": {"bits_per_weight": 3.6}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_build(open_build(folder, **SMALL))


def test_a_failure_is_never_recorded_and_the_next_run_computes_what_is_missing(
    whole: tuple[Path, Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out at the fifth of sixteen units: four are kept, no trace and no artifact tells of the fifth."""
    unit, calls = importlib.import_module("steps.quantize.unit"), 0
    real = unit.run

    def run(spec: Any, inputs: Mapping[str, Any], env: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise torch.OutOfMemoryError("injected")
        return real(spec, inputs, env)

    monkeypatch.setattr(unit, "run", run)
    build = open_build(tmp_path, **SMALL)
    with pytest.raises(torch.OutOfMemoryError):
        run_build(build)
    traces = build.runner.store.traces.all().values()
    assert sum(t.document["step"] == "steps.quantize.unit" for t in traces) == 4
    assert fsck(build.runner.store).sound and build.runner.store.leases.holders() == {}
    again = run_build(open_build(tmp_path, **SMALL))
    assert {r.id: r.units_computed for r in again.rows}["candidates"] == 12
    assert again.outputs["packed"] == whole[1].outputs["packed"]


def test_a_build_on_a_store_that_fails_half_of_the_time(
    whole: tuple[Path, Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls fail before or after they did their work, or deliver half of a body."""
    flaky = Flaky(7)
    folder = RemoteFolder(flaky, f"/{uuid.uuid4().hex}", "flaky://", tries=30)
    folder._answered = True
    monkeypatch.setattr(opening, "open_folder", lambda url, options=None: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (retry, verified):
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    build = open_build(tmp_path, **SMALL)
    built = run_build(build)
    assert len(flaky.faults) > 200 and built.outputs["packed"] == whole[1].outputs["packed"]
    assert {r.id: r.units_computed for r in built.rows} == {r.id: r.units_computed for r in whole[1].rows}
    assert [*folder.scan("quarantine")] == [] and fsck(build.runner.store).sound

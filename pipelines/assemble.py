"""Put a build's report together from what its nodes left in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.drive import Built
from pipelines.evaluations import domains_of, generations_of
from pipelines.graph import Bound
from pipelines.items import library_version
from pipelines.run import Runner
from pipelines.trained import distilled_of, recoded_of
from schemas.allocate import Additivity
from schemas.artifact import Digest
from schemas.base import Spec, digest_of
from schemas.calibrate import ModelSource
from schemas.distill import Distill, Join, Recode
from schemas.errors import InputError
from schemas.recipe import Recipe
from schemas.report import Fit, Report
from schemas.verify import Verify

REPORTED_LIBRARIES = (
    "torch",
    "transformers",
    "compressed-tensors",
    "pulp",
    "highspy",
    "prefect",
    "mlflow",
    "safetensors",
)


@dataclass(frozen=True)
class Run:
    """What is known about this run apart from its outputs."""

    seconds: float
    packed_path: str
    mlflow_run_id: str | None = None
    prefect_flow_run_id: str | None = None


def recipe_digest(recipe: Recipe) -> Digest:
    """Digest of the explicit recipe."""
    return digest_of(recipe.model_dump(mode="json"))


def build_digest(recipe: Recipe, built: Built) -> Digest:
    """Digest of the explicit recipe and of every output."""
    return digest_of({"recipe": recipe_digest(recipe), "outputs": built.outputs})


def assemble(runner: Runner, built: Built, run: Run) -> Report:
    """The report of a build that ends in a verify node."""
    verify = _verify_node(runner)
    metas = {port: _meta(runner, built, edge) for port, edge in verify.inputs.items() if _is_artifact(runner, edge)}
    verdict = _meta(runner, built, (verify.id, "verdict"))
    plan, packed = metas["plan"], metas["packed"]
    return Report(
        build_digest=build_digest(runner.recipe, built),
        recipe_digest=recipe_digest(runner.recipe),
        recipe=runner.recipe.name,
        recipe_document=runner.recipe.model_dump(mode="json"),
        model=_model_name(runner),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(run.seconds, 3),
        bpw=packed["bpw"],
        bytes=packed["bytes"],
        **verdict["metrics"],
        contrasts=verdict["contrasts"],
        uniform_format=plan["uniform_format"],
        predicted_kl=plan["predicted_kl"]["plan"],
        experts=verdict.get("experts"),
        distilled=distilled_of(runner, metas["selection"]),
        recoded=recoded_of(metas["selection"]),
        allocation=plan["rows"],
        certificate=plan["certificate"],
        nodes=built.rows,
        gates=verdict["gates"],
        passed=verdict["passed"],
        packed={"path": run.packed_path, "digest": built.outputs[verify.inputs["packed"][0]]["packed"]},
        speed=verdict["speed"],
        loaded=verdict["loaded"],
        device=verdict["device"],
        notes=_notes(runner, built),
        domains=domains_of(runner, built),
        positions=verdict.get("positions", ()),
        generations=generations_of(runner, built),
        fit=_fit(runner, built),
        rounds=plan.get("rounds", ()),
        libraries={name: library_version(name) for name in REPORTED_LIBRARIES},
        mlflow_run_id=run.mlflow_run_id,
        prefect_flow_run_id=run.prefect_flow_run_id,
    )


def _verify_node(runner: Runner) -> Bound:
    found = [b for b in runner.bound if isinstance(b.node.spec, Verify)]
    found = [b for b in found if "plan" in b.inputs] or found  # further file formats are verified without a plan
    if len(found) != 1:
        names = ", ".join(b.id for b in found) or "none"
        raise InputError("a build needs exactly one verify node", where=f"recipe {runner.recipe.name}", got=names)
    if missing := {"plan", "allocated", "greedy", "uniform"} - set(found[0].inputs):
        raise InputError(
            "the verify node needs every baseline for a report", where=found[0].id, wanted=", ".join(missing)
        )
    return found[0]


def _is_artifact(runner: Runner, edge: tuple[str, str]) -> bool:
    return runner.by_id[edge[0]].step is not None


def _meta(runner: Runner, built: Built, edge: tuple[str, str]) -> Mapping[str, Any]:
    node, port = edge
    return runner.store.artifacts.load(built.outputs[node][port]).meta


def _model_name(runner: Runner) -> str:
    return next(b.node.spec.source for b in runner.bound if isinstance(b.node.spec, ModelSource))


def _fit(runner: Runner, built: Built) -> Fit | None:
    """What the additivity node found, if there is one and it could compare."""
    for bound in runner.bound:
        if isinstance(bound.node.spec, Additivity):
            facts = _meta(runner, built, (bound.id, "additivity"))
            return Fit(**{k: facts[k] for k in Fit.model_fields}) if "ratio" in facts else None
    return None


def _notes(runner: Runner, built: Built) -> tuple[str, ...]:
    """Everything any node has to say, once."""
    notes: list[str] = []
    for bound in runner.bound:
        if bound.step is None:
            said = runner.source(bound.id).meta.get("notes", ())
            notes += [f"{bound.id}: {n}" for n in said]
            continue
        for digest in built.outputs[bound.id].values():
            meta = runner.store.artifacts.load(digest).meta
            for told in (meta, meta.get("certificate", {}), *(meta.get(name, {}) for name in _own(bound.node.spec))):
                notes += [f"{bound.id}: {n}" for n in told.get("notes", ())]
        notes += [f"{bound.id}: {n}" for n in _said_while_it_ran(runner, built, bound)]
    return tuple(dict.fromkeys(notes))


def _own(spec: Spec) -> tuple[str, ...]:
    """Facts that a refinement adds to a selection; those of the refinements before it travel on in what it gives."""
    if isinstance(spec, Recode):
        return ("recoded",)
    return ("distilled",) if isinstance(spec, Distill | Join) else ()


def _said_while_it_ran(runner: Runner, built: Built, bound: Bound) -> list[str]:
    """What steps noted of the call, not of the result; of the many items of unit-scope nodes nothing is looked up."""
    if bound.step is None or bound.step.scope == "unit":
        return []
    keys = [item.key for item in runner.state(bound, built.outputs).items]
    traces = runner.store.traces.get_many(keys)
    return [note for key in keys if key in traces for note in traces[key].facts.get("notes", ())]

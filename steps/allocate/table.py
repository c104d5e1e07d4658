"""Read the cost table from what the sensitivity and quantize steps wrote, and refuse what no plan should rest on.

U units, C formats, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.artifact import Unit, item_name
from schemas.errors import InputError
from schemas.format import Format, read_format
from steps.allocate.around import lifted, offset, settled
from steps.allocate.problem import Floats
from steps.allocate.unreached import with_unreached
from steps.model.structure import find_units
from steps.step import Value

NEGATIVE_SHARE, NEGATIVE_NATS = 0.01, 1e-6
"""A negative score within this share of the largest score, or this size, is noise about zero; beyond, an error."""


@dataclass(frozen=True)
class Table:
    """Units in model order, formats in order of first appearance, scores [U, C], present [U, C], documents."""

    units: tuple[Unit, ...]
    formats: dict[str, Format]
    score_UC: Floats
    present_UC: NDArray[np.bool_]
    document_UCD: Floats | None
    tokens_D: Floats | None
    notes: tuple[str, ...]
    offset: float = 0.0
    """What is added to a sum of scores to make it a predicted KL; see steps/sensitivity/rescore.py."""
    offset_D: Floats | None = None


def read(scores: Value, candidates: Value, model: Value) -> Table:
    """The table of a model's candidates. InputError names the unit and what is wrong with its score or shape."""
    metas = {name: child.meta for name, child in candidates.children.items()}
    scored = {name: child.meta for name, child in scores.children.items()}
    _check_same_items(set(metas), set(scored))
    _check_names(metas)
    scored = settled(scored)
    formats = {f.name: f for f in (read_format(meta["format"]) for meta in metas.values())}
    named = {str(meta["unit"]) for meta in metas.values()}
    units = tuple(find_units(model.meta["config"], model.meta["shapes"], named))
    _check_units(units, metas)
    around, around_D = offset(scored)
    scored, unreached = with_unreached(scored, metas) if around_D is None else (scored, ())
    shape = (len(units), len(formats))
    score_UC, present_UC = np.zeros(shape), np.zeros(shape, dtype=bool)
    for i, unit in enumerate(units):
        for j, name in enumerate(formats):
            meta = scored.get(item_name(unit.name, name))
            if meta is not None:
                score_UC[i, j], present_UC[i, j] = float(meta["score"]), True
    _check_scores(units, list(formats), score_UC, present_UC, relative=around_D is not None)
    document_UCD, tokens_D = _documents(units, list(formats), scored)
    if around_D is None:
        notes = (*unreached, *_notes(units, score_UC, present_UC))
        return Table(units, formats, score_UC, present_UC, document_UCD, tokens_D, notes)
    assert document_UCD is not None
    low_U = lifted(score_UC, present_UC)
    return Table(
        units,
        formats,
        np.where(present_UC, score_UC - low_U[:, None], 0.0),
        present_UC,
        document_UCD - low_U[:, None, None],
        tokens_D,
        (),
        around + math.fsum(low_U.tolist()),
        around_D + low_U.sum(),
    )


def _check_same_items(candidates: set[str], scores: set[str]) -> None:
    if candidates == scores and candidates:
        return
    missing, extra = sorted(candidates - scores), sorted(scores - candidates)
    raise InputError(
        "scores and candidates are not of the same units and formats",
        where="inputs scores and candidates",
        got=f"without a score: {', '.join(missing[:4]) or 'none'}; without tensors: {', '.join(extra[:4]) or 'none'}",
        wanted="one score per candidate",
        fix="score the same candidates that are offered",
    )


def _check_names(metas: Mapping[str, Mapping[str, Any]]) -> None:
    """Each candidate is of the unit and format that its name says, so that none is there twice."""
    for name, meta in metas.items():
        own = item_name(str(meta["unit"]), read_format(meta["format"]).name)
        if own != name:
            raise InputError(
                "a candidate is not of the unit and format that its name says",
                where=f"candidate {name}",
                got=own + (", which is there as well" if own in metas else ""),
                wanted=name,
                fix="quantize every unit to every format once",
            )


def _check_units(units: tuple[Unit, ...], metas: Mapping[str, Mapping[str, Any]]) -> None:
    """Candidates must be of this model's linears and their shapes."""
    by_name = {u.name: dict(zip(u.members, u.shapes, strict=True)) for u in units}
    for item, meta in metas.items():
        got = {name: tuple(member["shape"]) for name, member in meta["members"].items()}
        if got != by_name[meta["unit"]]:
            wanted = by_name[meta["unit"]]
            raise InputError("a candidate has other linears than the model", where=item, got=got, wanted=wanted)


def _check_scores(
    units: tuple[Unit, ...], formats: list[str], score_UC: Floats, present_UC: NDArray[np.bool_], *, relative: bool
) -> None:
    """Finite; and if they are not relative to another plan, not negative beyond rounding, and not all zero."""
    largest = float(np.max(score_UC, initial=0.0, where=np.isfinite(score_UC)))
    floor = -max(NEGATIVE_SHARE * largest, NEGATIVE_NATS)
    for u, unit in enumerate(units):
        named = {f: float(score_UC[u, c]) for c, f in enumerate(formats) if present_UC[u, c]}
        if bad := {f: s for f, s in named.items() if not np.isfinite(s)}:
            raise _bad_score("a score is not a finite number", unit, bad, "find the tensor that overflowed")
        if relative:
            continue
        if not any(named.values()):
            fix = f"check that the model uses the unit; leave it as it is with `keep: [{unit.name}]`"
            raise _bad_score("all scores of a unit are zero", unit, named, fix)
        if bad := {f: s for f, s in named.items() if s < floor}:
            raise _bad_score("a score is negative beyond rounding", unit, bad, "score with more windows")


def _bad_score(what: str, unit: Unit, scores: dict[str, float], fix: str) -> InputError:
    got = ", ".join(f"{name} {score:g}" for name, score in scores.items())
    return InputError(what, where=unit.name, got=got, wanted="finite scores >= 0, not all zero", fix=fix)


def _documents(
    units: tuple[Unit, ...], formats: list[str], scored: Mapping[str, Mapping[str, Any]]
) -> tuple[Floats | None, Floats | None]:
    """Scores per document [U, C, D] and weights [D], if every item has them over the same documents."""
    weights = {tuple(meta.get("weights") or ()) for meta in scored.values()}
    if len(weights) > 1:
        got = f"{len(weights)} different lists of weights"
        raise InputError("scores were measured on different documents", where="input scores", got=got)
    tokens_D = np.array(weights.pop(), dtype=np.float64)
    if not len(tokens_D):
        return None, None
    document_UCD = np.zeros((len(units), len(formats), len(tokens_D)))
    for i, unit in enumerate(units):
        for j, name in enumerate(formats):
            item = item_name(unit.name, name)
            if item in scored:
                document_UCD[i, j] = _finite(item, scored[item]["documents"], len(tokens_D))
    return document_UCD, tokens_D


def _finite(item: str, values: Any, documents: int) -> Floats:
    array = np.array(values, dtype=np.float64)
    if array.shape != (documents,) or not np.isfinite(array).all():
        raise InputError("bad scores per document", where=item, got=array.tolist()[:4], wanted=f"{documents} numbers")
    return array


def _notes(units: tuple[Unit, ...], score_UC: Floats, present_UC: NDArray[np.bool_]) -> tuple[str, ...]:
    negative_U = (present_UC & (score_UC < 0)).any(axis=1)
    if not negative_U.any():
        return ()
    names = [units[u].name for u in np.flatnonzero(negative_U)]
    least = float(score_UC[present_UC].min())
    return (f"negative scores (least {least:.3g}) count as 0 in the solver, raw elsewhere: {', '.join(names[:8])}",)

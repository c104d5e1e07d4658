"""The one place that talks to PuLP: an integer program over the choices that reduced costs leave open.

Binary x[u, c] says that unit u gets format c. Nothing a solver says is believed before it is checked: CBC reports
Optimal at a time limit and leaves values behind an infeasible problem (coin-or/pulp#711). U units, C formats, K limits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.allocate import ILP
from steps.allocate.problem import Choice
from steps.allocate.program import Program

OBJECTIVE_SCALE = 1e4
WEIGHT_SCALE = 1e3
"""Largest absolute coefficients of the objective and of a limit; solvers' tolerances are absolute, about 1e-6."""
INTEGRAL = 1e-4
"""How far from 0 or 1 a returned value may be; solvers return 0.9999999."""


@dataclass(frozen=True)
class Answer:
    """What came back: a checked choice, or None and the reason. `bound` is a proven lower bound on the value."""

    choice_U: Choice | None
    solver: str
    status: str
    bound: float
    open_units: int
    open_choices: int


def make_solver(spec: ILP, gap_abs: float) -> Any | None:
    """HiGHS, else the CBC that PuLP bundles, else None. One thread, seeded; the gap is absolute in scaled value."""
    import pulp

    with _quiet():
        highs = pulp.HiGHS(
            msg=False, timeLimit=spec.seconds, gapRel=0.0, gapAbs=gap_abs, threads=1, random_seed=spec.seed
        )
        if highs.available():
            return highs
        cbc = pulp.PULP_CBC_CMD(
            msg=False,
            timeLimit=spec.seconds,
            gapRel=0.0,
            gapAbs=gap_abs,
            threads=1,
            options=[f"randomCbcSeed {spec.seed}", f"randomSeed {spec.seed}"],
        )
        return cbc if cbc.available() else None


def solve(program: Program, open_UC: NDArray[np.bool_], base_U: Choice, spec: ILP, gap_abs: float) -> Answer | None:
    """Choose among open_UC, at most `gap_abs` above the least value; None when no solver is installed.

    Coefficients are differences to base_U, an allowed choice, so that what is decided is not lost beside what is fixed.
    """
    units = np.flatnonzero(open_UC.sum(axis=1) > 1)
    base_U = np.where(open_UC[np.arange(len(base_U)), base_U], base_U, open_UC.argmax(axis=1))
    base, size = program.value(base_U), int(open_UC[units].sum())
    model = _model(program, open_UC, base_U, units)
    solver = make_solver(spec, max(gap_abs, 0.0) * model.value_scale)
    if solver is None:
        return None
    with _quiet():
        model.problem.solve(solver)
    choice_U, status = _read(model, program, base_U)
    bound = -np.inf if choice_U is None else base + _dual_bound(model, gap_abs)
    return Answer(choice_U, str(solver.name), status, bound, len(units), size)


@dataclass(frozen=True)
class _Model:
    problem: Any
    variables: dict[tuple[int, int], Any]
    value_scale: float


def _model(program: Program, open_UC: NDArray[np.bool_], base_U: Choice, units: NDArray[np.intp]) -> _Model:
    """Variables are named by index: names of units collide once a solver has replaced what it does not like."""
    import pulp

    pairs = [(int(u), int(c)) for u in units for c in np.flatnonzero(open_UC[u])]
    with _quiet():
        problem = pulp.LpProblem("allocate", pulp.LpMinimize)
        variables = {pair: pulp.LpVariable(f"x{i}", cat=pulp.LpBinary) for i, pair in enumerate(pairs)}
    drop = {(u, c): float(program.value_UC[u, c] - program.value_UC[u, base_U[u]]) for u, c in pairs}
    scale = _scale(OBJECTIVE_SCALE, drop.values())
    problem += pulp.LpAffineExpression([(variables[p], drop[p] * scale) for p in pairs])
    for u in units.tolist():
        problem += pulp.LpAffineExpression([(variables[u, c], 1) for c in np.flatnonzero(open_UC[u]).tolist()]) == 1
    slack_K = program.capacity_K - program.used(base_U)
    for k, slack in enumerate(slack_K.tolist()):
        gain = {(u, c): float(program.weight_KUC[k, u, c] - program.weight_KUC[k, u, base_U[u]]) for u, c in pairs}
        factor = _scale(WEIGHT_SCALE, gain.values())
        problem += pulp.LpAffineExpression([(variables[p], gain[p] * factor) for p in pairs]) <= slack * factor
    return _Model(problem, variables, scale)


def _scale(target: float, numbers: Any) -> float:
    largest = max((abs(n) for n in numbers), default=0.0)
    return target / largest if largest > 0 else 1.0


def _read(model: _Model, program: Program, base_U: Choice) -> tuple[Choice | None, str]:
    """(choice, status): the choice only if solver and solution status both say optimal and every check holds."""
    import pulp

    problem = model.problem
    status = f"{pulp.LpStatus[problem.status]}, {pulp.LpSolution[problem.sol_status]}"
    if problem.status != pulp.LpStatusOptimal or problem.sol_status != pulp.LpSolutionOptimal:
        return None, status
    choice_U, chosen = base_U.copy(), np.zeros(len(base_U), dtype=int)
    for (u, c), variable in model.variables.items():
        value = variable.value()
        if value is None or min(abs(value), abs(value - 1)) > INTEGRAL:
            return None, f"{status}, but a variable is {value}"
        if value > 0.5:
            choice_U[u], chosen[u] = c, chosen[u] + 1
    if any(chosen[u] != 1 for u, _ in model.variables):
        return None, f"{status}, but a unit has not exactly one format"
    if not program.fits(choice_U):
        return None, f"{status}, but the choice is over a limit"
    return choice_U, status


def _dual_bound(model: _Model, gap_abs: float) -> float:
    """Proven lower bound above the base, of an optimal answer: HiGHS tells it; of CBC the gap asked for is known."""
    import pulp

    highs = getattr(model.problem, "solverModel", None)
    if highs is not None and hasattr(highs, "getInfo"):
        return float(highs.getInfo().mip_dual_bound) / model.value_scale
    return float(pulp.value(model.problem.objective)) / model.value_scale - gap_abs


@contextmanager
def _quiet() -> Iterator[None]:
    """PuLP 3.3 announces PuLP 4 on every use; `pulp<4` is pinned."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*(PULP_CBC_CMD|LpVariable)", category=DeprecationWarning)
        yield

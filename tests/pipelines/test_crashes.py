"""`bitsmith run` killed again and again, and interrupted: the build that comes out is the one of an undisturbed run."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from builds import write_recipe
from crashes import COMPUTE, MAIN, Act, Bench, Moment, check_whole, deterministic, torture

from pipelines import cli, servers
from pipelines.services import ServiceState

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("services")]
IN_FLIGHT = 1
"""Items that a process computes at a time: what a kill can lose, and no more."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("crashes"))


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, services: ServiceState, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), recipe, services)
    attempt = bench.run(fresh=True)
    assert attempt.code == 0, attempt.stderr[-3000:]
    assert len(attempt.begun) == len(set(attempt.begun)) == len(bench.store.traces.all())
    return bench


def check_same_build(bench: Bench, undisturbed: Bench) -> None:
    """Every key, every output that is no measurement of speed, and every exported byte."""
    ours, theirs = deterministic(bench.store), deterministic(undisturbed.store)
    assert ours == theirs and {step.split(".")[1] for step, _ in ours.values()} > {"distill", "pack", "sensitivity"}
    assert bench.exported() == undisturbed.exported()
    mine, other = bench.report(), undisturbed.report()
    assert mine.packed.digest == other.packed.digest
    assert {n.id: n.key for n in mine.nodes} == {n.id: n.key for n in other.nodes}
    differing = {a.id for a, b in zip(mine.nodes, other.nodes, strict=True) if a.outputs != b.outputs}
    assert differing <= {"verdict"}


def check_logged_once(bench: Bench) -> None:
    """MLflow has one finished run of the build, whatever the killed ones had begun to log."""
    from mlflow import MlflowClient

    report = bench.report()
    client = MlflowClient(tracking_uri=bench.services.tracking_uri)
    experiment = client.get_experiment_by_name(report.recipe)
    runs = client.search_runs([experiment.experiment_id], f"tags.`bitsmith.build` = '{report.build_digest}'")
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert [(r.info.run_id, r.info.status) for r in parents] == [(report.mlflow_run_id, "FINISHED")]


def torment(bench: Bench, undisturbed: Bench, kills: int, seed: int) -> None:
    attempts = torture(bench, random.Random(seed), kills)
    killed = [a for a in attempts if a.code]
    assert len(killed) >= kills - 2, "runs ended before they were killed"
    assert [a.again for a in attempts] == [set()] * len(attempts), "what is in the store was computed again"
    begun = [key for a in attempts for key in a.begun]
    assert set(begun) == set(bench.store.traces.all())
    assert len(begun) - len(set(begun)) <= IN_FLIGHT * len(killed)
    check_same_build(bench, undisturbed)
    check_logged_once(bench)


def test_a_build_killed_ten_times_is_the_build_of_an_undisturbed_run(
    recipe: Path, services: ServiceState, undisturbed: Bench, tmp_path: Path
) -> None:
    torment(Bench(tmp_path, recipe, services), undisturbed, kills=10, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_builds_killed_ten_times(
    seed: int, recipe: Path, services: ServiceState, undisturbed: Bench, tmp_path: Path
) -> None:
    torment(Bench(tmp_path, recipe, services), undisturbed, kills=10, seed=seed)


def test_interrupted_runs_say_so_and_the_next_goes_on(
    recipe: Path, services: ServiceState, undisturbed: Bench, tmp_path: Path
) -> None:
    rng = random.Random(3)
    bench = Bench(tmp_path, recipe.with_name("interrupted.yaml"), services)
    bench.recipe.write_text(recipe.read_text())
    for ending in (signal.SIGINT, signal.SIGTERM):
        attempt = bench.run(Moment(rng.uniform(0, 0.5), COMPUTE, rng.randint(3, 40)), interrupt(ending))
        assert attempt.code == 130, attempt.stderr[-3000:]
        *_, last = attempt.stderr.splitlines()
        assert last.startswith("interrupted") and "run the same command" in last
        assert "Traceback" not in attempt.stderr and "Crash" not in attempt.stderr
        assert not attempt.again and attempt.begun
        check_whole(bench.store)
    assert states(bench) == {"Crashed"}
    assert bench.run().code == 0
    check_same_build(bench, undisturbed)


def interrupt(ending: signal.Signals) -> Act:
    """Send that signal."""
    return lambda process: process.send_signal(ending)


def states(bench: Bench) -> set[str]:
    """States of all flow runs of the bench's recipe on the Prefect server."""
    where = {"flow_runs": {"name": {"any_": [str(bench.recipe)]}}}
    return {run["state_name"] for run in servers.call(str(bench.services.prefect_api_url), "/flow_runs/filter", where)}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_prefect_is_there(
    ending: signal.Signals, recipe: Path, services: ServiceState, tmp_path: Path
) -> None:
    attempt = Bench(tmp_path, recipe, services).run(Moment(0.5, MAIN), interrupt(ending))
    said = [line for line in attempt.stderr.strip().splitlines() if line and not line.startswith("note: ")]
    assert attempt.code == 130 and said[0].startswith("interrupted"), attempt.stderr


def test_an_error_behind_which_is_an_interrupt_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect, cut off while it sets a task up, fails to record that and raises ValueError."""

    def cut_off(options: object) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("Task run is not set")

    monkeypatch.setattr(cli, "_dispatch", cut_off)
    assert cli.main(["status"]) == 130
    assert capsys.readouterr().err.startswith("\ninterrupted")

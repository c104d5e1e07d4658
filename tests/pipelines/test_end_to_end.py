"""The commands a user types, against a real Prefect server, worker and MLflow server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import crashes
import pytest
from builds import write_recipe

from pipelines import servers
from pipelines.services import ServiceState
from schemas.report import Report
from store.open import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("services")]
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def state(services: ServiceState) -> ServiceState:
    return services


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def command(state: ServiceState, *words: str, code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "BITSMITH_HOME": str(state.folder), "NO_COLOR": "1", **extra}
    done = subprocess.run([*words], env=env, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == code, f"{words} gave {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def first(state: ServiceState, recipe: Path) -> Report:
    """The report of a first build through `prefect deployment run`, read back by the cached `bitsmith run`."""
    assert state.prefect_api_url is not None
    overrides = json.dumps({"budget.bits_per_weight": 3.6})
    words = ["prefect", "deployment", "run", "compress/llama-mixed", "--watch"]
    parameters = ["--param", f"recipe={recipe}", "--param", f"set={overrides}"]
    command(state, str(BIN / words[0]), *words[1:], *parameters, PREFECT_API_URL=state.prefect_api_url)
    return cached_report(state, recipe)


def cached_report(state: ServiceState, recipe: Path) -> Report:
    """What a second run prints; its process must not have imported anything heavy."""
    path = state.folder / "report.json"
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        f"code = main(['run', {str(recipe)!r}, '--set', 'budget.bits_per_weight=3.6', '--json', {str(path)!r}])\n"
        "print('HEAVY', [m for m in ('torch', 'prefect', 'mlflow', 'transformers') if m in sys.modules])\n"
        "sys.exit(code)"
    )
    done = command(state, sys.executable, "-c", code)
    assert "every node is cached" in done.stderr
    assert "HEAVY []" in done.stdout
    return Report.model_validate_json(path.read_text())


def test_a_deployment_run_builds_and_a_later_run_finds_everything_cached(first: Report) -> None:
    assert first.passed and {n.status for n in first.nodes} == {"cached"}
    assert first.bpw.linear <= 3.6
    assert first.prefect_flow_run_id and first.mlflow_run_id


@pytest.mark.slow  # the short form: test_a_process_without_our_code_computes_with_exactly_our_weights
def test_the_packed_folder_loads_where_bitsmith_was_never_imported(first: Report) -> None:
    code = (
        "import sys\nfrom transformers import AutoModelForCausalLM\nimport torch\n"
        f"model = AutoModelForCausalLM.from_pretrained({first.packed.path!r})\n"
        "print(torch.isfinite(model(torch.arange(8)[None]).logits).all().item(),"
        " [m for m in sys.modules if m.split('.')[0] in ('schemas', 'steps', 'store', 'pipelines')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.split("\n")[-2] == "True []"


def test_mlflow_has_the_build_with_nested_nodes_and_a_candidate_version(state: ServiceState, first: Report) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=state.tracking_uri)
    run = client.get_run(str(first.mlflow_run_id))
    assert run.data.metrics["kl"] == pytest.approx(first.mixed.kl.value)
    assert run.data.metrics["bytes"] == first.bytes.actual
    nested = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    assert {r.info.run_name for r in nested} == {n.id for n in first.nodes}
    version = client.get_model_version_by_alias(first.recipe, "candidate")
    assert version.run_id == run.info.run_id


def test_a_flow_over_cached_nodes_shows_cached_tasks_and_computes_nothing(
    state: ServiceState, recipe: Path, first: Report
) -> None:
    assert state.prefect_api_url is not None
    (state.folder / "store" / "builds" / f"{first.build_digest}.json").unlink()  # so that the flow runs at all
    out = state.folder / "again.json"
    words = ["run", str(recipe), "--set", "budget.bits_per_weight=3.6", "--json", str(out)]
    assert crashes.command(state, words, state.folder)[0] == 0
    again = Report.model_validate_json(out.read_text())
    assert sum(n.units_computed for n in again.nodes) == 0 and again.packed.digest == first.packed.digest
    where = {"flow_runs": {"id": {"any_": [again.prefect_flow_run_id]}}}
    tasks = servers.call(state.prefect_api_url, "/task_runs/filter", where)
    assert tasks and {t["state"]["name"] for t in tasks} == {"Cached"}


def test_a_packed_file_that_is_damaged_in_the_store_is_made_again(
    state: ServiceState, recipe: Path, first: Report
) -> None:
    store = Store(state.folder / "store")
    rows = store.artifacts.load(first.packed.digest).files.rows
    stored = state.folder / "store" / store.blobs.path(rows["model.safetensors"]["digest"])
    stored.unlink()
    out = state.folder / "mended.json"
    words = ["run", str(recipe), "--set", "budget.bits_per_weight=3.6", "--json", str(out)]
    assert crashes.command(state, words, state.folder)[0] == 0
    again = Report.model_validate_json(out.read_text())
    assert {row.id: row.units_computed for row in again.nodes if row.units_computed} == {"packed": 1}
    assert again.packed.digest == first.packed.digest and stored.is_file()


def test_failed_gates_exit_1_and_promote_nothing(state: ServiceState, recipe: Path, first: Report) -> None:
    out = state.folder / "failed.json"
    words = ["run", str(recipe), "--set", "gates.max_kl=1e-9", "--set", "name=strict"]
    assert crashes.command(state, [*words, "--json", str(out)], state.folder)[0] == 1
    report = Report.model_validate_json(out.read_text())
    assert [g.name for g in report.gates if not g.passed] == ["max_kl"]
    from mlflow import MlflowClient

    assert not MlflowClient(tracking_uri=state.tracking_uri).search_model_versions("name='strict'")
    assert command(state, str(BIN / "bitsmith"), *words, code=1).stderr.startswith("every node is cached")


def test_unreachable_servers_are_named_within_seconds(state: ServiceState, recipe: Path) -> None:
    words = [str(BIN / "bitsmith"), "run", str(recipe), "--set", "budget.bits_per_weight=3.1"]
    dead = "http://127.0.0.1:9"
    done = command(state, *words, "--tracking", dead, code=2)
    assert dead in done.stderr and "Traceback" not in done.stderr
    done = command(state, *words, code=2, PREFECT_API_URL=f"{dead}/api")
    assert dead in done.stderr and "Traceback" not in done.stderr

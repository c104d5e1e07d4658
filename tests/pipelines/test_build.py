"""What is computed, what is not, and what comes back after damage: real steps on a tiny model, without Prefect."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from builds import CONFIG, open_build, run_build, write_recipe, write_text
from checkpoints import edit_json, edit_tensors
from models import tiny_value, write_model
from safetensors.torch import load_file

from pipelines.assemble import Run, assemble
from pipelines.drive import Built, Outputs, drive
from pipelines.run import RESUME, Runner
from schemas.errors import InputError
from schemas.recipe import Recipe
from steps.calibrate import statistics
from steps.step import Output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    folder = tmp_path_factory.mktemp("base") / "first"
    return folder, run_build(open_build(folder))


@pytest.fixture
def copy(base: tuple[Path, Built], tmp_path: Path) -> Path:
    """The finished build's folder, model, texts and store under another path."""
    return Path(shutil.copytree(base[0], tmp_path / "elsewhere"))


def computed(built: Built) -> dict[str, int]:
    return {r.id: r.units_computed for r in built.rows if r.units_computed}


def test_a_build_ends_in_a_report_whose_bytes_are_as_predicted(base: tuple[Path, Built]) -> None:
    folder, built = base
    report = assemble(open_build(folder).runner, built, Run(1.0, "here"))
    assert report.bytes.predicted == report.bytes.actual
    assert report.bpw.linear <= 3.8
    assert {g.name for g in report.gates} >= {"weights_match", "size_as_predicted"} and report.passed
    assert len(report.allocation) == 8
    candidates = next(r for r in report.nodes if r.id == "candidates")
    assert (candidates.status, candidates.units_computed) == ("computed", 32)


def test_a_second_run_computes_nothing_wherever_the_files_are(base: tuple[Path, Built], copy: Path) -> None:
    (copy / "model").rename(copy / "renamed")
    again = run_build(open_build(copy, model={"source": str(copy / "renamed")}))
    assert computed(again) == {} and again.outputs == base[1].outputs


def test_renaming_the_recipe_or_a_node_computes_nothing(copy: Path) -> None:
    build = open_build(copy, name="other")
    nodes = {("zeta" if k == "candidates" else k): v for k, v in build.recipe.nodes.items()}
    swapped = {
        k: v.model_copy(update={"inputs": {p: e.replace("candidates", "zeta") for p, e in v.inputs.items()}})
        for k, v in nodes.items()
    }
    runner = Runner(Recipe(name="renamed", nodes=swapped), build.runner.store, build.runner.place)
    assert computed(drive(runner, runner.execute)) == {}


def test_another_budget_quantizes_and_scores_nothing(copy: Path) -> None:
    done = computed(run_build(open_build(copy, budget={"bits_per_weight": 3.0})))
    assert "candidates" not in done and "scores" not in done and "statistics" not in done
    assert {"plan", "packed", "verdict"} <= done.keys()


def test_one_more_format_computes_that_format_alone(copy: Path) -> None:
    done = computed(run_build(open_build(copy, formats=["int2-g32", "int3-g32", "int4-g64", "int8-g64", "int5-g64"])))
    assert done["candidates"] == 8 and done["scores"] == 8


def change_weight(folder: Path, name: str) -> None:
    """Nudge one weight of one tensor, whichever shard it is in."""
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            changed = tensors[name].clone()
            changed[0, 0] += 0.25
            edit_tensors(shard, {name: changed})


@pytest.mark.parametrize(
    ("name", "statistics", "candidates"),
    [
        # The last block's down projection feeds no Hessian: its own four formats, nothing else.
        ("model.layers.1.mlp.down_proj.weight", 1, 4),
        # The first block's query projection moves everything behind it; its own input stays.
        ("model.layers.0.self_attn.q_proj.weight", 2, 32),
    ],
)
def test_one_changed_weight_computes_exactly_what_depends_on_it(
    copy: Path, name: str, statistics: int, candidates: int
) -> None:
    change_weight(copy / "model", name)
    done = computed(run_build(open_build(copy)))
    assert (done["statistics"], done["candidates"]) == (statistics, candidates)
    assert "calibration" not in done


def test_evaluation_text_touches_nothing_that_was_learned(copy: Path) -> None:
    write_text(copy / "evaluate.jsonl", 8, 99)
    done = computed(run_build(open_build(copy)))
    assert {"evaluation", "reference", "verdict"} <= done.keys()
    assert not {"statistics", "candidates", "scores", "plan", "packed"} & done.keys()


def test_calibration_text_that_is_not_used_computes_nothing_behind_the_windows(copy: Path) -> None:
    with (copy / "calibrate.jsonl").open("a") as file:
        file.write(json.dumps({"text": "another"}) + "\n")
    done = computed(run_build(open_build(copy)))
    assert "calibration" in done  # the windows are cut again ...
    assert "evaluation" not in done


def test_a_library_version_changes_the_keys_of_the_steps_that_declare_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import items

    real = items.library_version
    monkeypatch.setattr(items, "library_version", lambda name: "0.0" if name == "highspy" else real(name))
    done = computed(run_build(open_build(copy)))
    assert set(done) == {"plan"}  # the same plan comes out, so nothing behind it runs


def test_a_unit_that_does_not_reach_the_output_is_refused_with_advice_that_works(tmp_path: Path) -> None:
    """An output projection of zeros: nothing that q, k and v give arrives, and rounding it changes nothing."""
    write_recipe(tmp_path)
    name = "model.layers.1.self_attn.o_proj.weight"
    for shard in (tmp_path / "model").glob("*.safetensors"):
        if name in (tensors := load_file(shard)):
            edit_tensors(shard, {name: torch.zeros_like(tensors[name])})
    keep: list[str] = []
    for advised in ("layers.1.self_attn.qkv", "layers.1.self_attn.o"):
        with pytest.raises(InputError) as caught:
            run_build(open_build(tmp_path, distill=None, keep=keep))
        assert f"`keep: [{advised}]`" in caught.value.fix
        keep.append(advised)
    assert run_build(open_build(tmp_path, distill=None, keep=keep)).outputs["packed"]


def objects(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "state/store/objects").rglob("*") if p.is_file())


def test_lost_and_damaged_objects_are_made_again_and_the_result_is_the_same(
    base: tuple[Path, Built], copy: Path
) -> None:
    for number, path in enumerate(objects(copy)):
        if number % 3 == 0:
            path.chmod(0o644)
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
        elif number % 3 == 1:
            path.unlink()
    other = run_build(open_build(copy, budget={"bits_per_weight": 3.0}))
    untouched = run_build(open_build(base[0], budget={"bits_per_weight": 3.0}))
    assert other.outputs["packed"] == untouched.outputs["packed"]
    assert other.outputs["plan"] == untouched.outputs["plan"]
    assert computed(other).keys() > computed(untouched).keys(), "what was made again is counted"


def test_scratch_between_blocks_is_cleaned_and_made_again_when_needed(copy: Path) -> None:
    build = open_build(copy)
    bound = build.runner.by_id["statistics"]
    outputs = run_build(build).outputs
    state = build.runner.state(bound, outputs)
    carried = {ports["hidden"] for ports in state.outputs.values()}
    assert any(build.runner.store.artifacts.missing(d) for d in carried)
    change_weight(copy / "model", "model.layers.1.self_attn.q_proj.weight")
    assert computed(run_build(open_build(copy)))["statistics"] == 1


@pytest.mark.parametrize("changed", [1, 3])
def test_a_block_that_comes_out_otherwise_when_made_again_is_what_counts_from_then_on(
    changed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another device: what was cleaned away cannot be made again as it was, and the build ends all the same."""
    shutil.rmtree(write_recipe(tmp_path).parent / "model")
    write_model(tmp_path / "model", tiny_value(tied=True, dtype=torch.bfloat16, **CONFIG | {"num_hidden_layers": 4}))
    small: dict[str, Any] = {"formats": ["int4-g64"], "distill": None, "sensitivity": "fisher", "method": "rtn"}
    small["budget"] = {"bits_per_weight": 8.0}
    run_build(open_build(tmp_path, **small))
    real, calls = statistics.run, list[int]()

    def otherwise(*given: Any) -> dict[str, Output]:
        found = real(*given)
        calls.append(1)
        moved = {name: tensor + 1e-6 * len(calls) for name, tensor in found["hidden"].tensors.items()}
        return {**found, "hidden": Output(found["hidden"].meta, moved)}

    monkeypatch.setattr(statistics, "run", otherwise)
    change_weight(tmp_path / "model", f"model.layers.{changed}.self_attn.q_proj.weight")
    assert computed(run_build(open_build(tmp_path, **small)))["statistics"]
    assert len(calls) == 4  # the first block was made again and is another, so the three behind it are, too
    monkeypatch.setattr(statistics, "run", real)
    assert computed(run_build(open_build(tmp_path, **small))) == {}


def test_activations_between_blocks_are_bounded_and_leave_nothing(tmp_path: Path) -> None:
    """However many blocks a model has, at most three blocks' activations are in the store, and none at the end."""
    shutil.rmtree(write_recipe(tmp_path).parent / "model")
    write_model(tmp_path / "model", tiny_value(tied=True, dtype=torch.bfloat16, **CONFIG | {"num_hidden_layers": 7}))
    build = open_build(tmp_path, formats=["int4-g64"], distill=None, sensitivity="fisher", method="rtn")
    store, present = build.runner.store, list[int]()
    at = [bound.id for bound in build.runner.bound].index("statistics")
    del build.runner.bound[at + 1 :]

    def spilled() -> int:
        hidden = {t.outputs["hidden"] for t in store.traces.all().values() if "hidden" in t.outputs}
        return len(hidden - store.artifacts.missing(hidden))

    def execute(node: str, outputs: Outputs, labels: Sequence[str]) -> int:
        return build.runner.execute(node, outputs, labels, lambda *told: present.append(spilled()))

    drive(build.runner, execute)
    assert max(present) == 3 and present[-1] <= 3 and len(present) >= 7
    assert spilled() == 0 and not [*build.runner.place.cache.glob("step-*")]


def test_a_source_that_changes_while_the_build_runs_is_refused(copy: Path) -> None:
    build = open_build(copy)
    outputs = run_build(build).outputs
    edit_json(copy / "model" / "config.json", rms_norm_eps=1e-4)
    fresh = open_build(copy)
    with pytest.raises(InputError, match="changed"):
        fresh.runner.handles(fresh.runner.by_id["statistics"], outputs)


def test_a_damaged_training_state_is_noted_and_changes_no_result(base: tuple[Path, Built], copy: Path) -> None:
    """The note stands with the trace and in the report, the output is the same: nothing behind it is computed again."""
    runner = open_build(copy).runner
    (item,) = runner.state(runner.by_id["distilled"], base[1].outputs).items
    runner.store.folder.remove(runner.store.traces.path(item.key))
    state = runner.place.cache / RESUME / item.key
    state.mkdir(parents=True)
    (state / "training.safetensors").write_bytes(b"torn")
    built = drive(runner, runner.execute)
    assert computed(built) == {"distilled": 1} and built.outputs == base[1].outputs
    said = [note for note in assemble(runner, built, Run(0.0, "nowhere")).notes if "began anew" in note]
    assert len(said) == 1 and said[0].startswith("distilled: ") and "training.safetensors" in said[0]
    assert not state.exists()

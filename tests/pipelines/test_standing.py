"""Champions without any server: who takes the place, who does not and why, what MLflow and the commands show."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
from builds import open_build, places, run_build, write_text
from nights import nudge

from pipelines.assemble import Run, assemble
from pipelines.cli import main
from pipelines.finish import finish
from pipelines.standing import judge
from schemas.errors import InputError
from schemas.report import Report, Standing
from store.open import Store
from store.prune import prune

WORSE: dict[str, Any] = {"formats": ["int2-g32"]}
"""The same budget, badly used."""


def finished(folder: Path, **changes: Any) -> Report:
    build = open_build(folder, distill=None, **changes)
    return finish(build, run_build(build), None, 1.0)


def judged(folder: Path, **changes: Any) -> Standing:
    """The standing that a build would have; nothing is recorded."""
    build = open_build(folder, distill=None, **changes)
    return judge(assemble(build.runner, run_build(build), Run(1.0, "")), build.runner.store)


def command(folder: Path, *words: str) -> int:
    where = places(folder)
    tracking = ["--tracking", where.tracking] if words[0] == "promote" else []
    return main([*words, "--store", where.store, *tracking])


def aliases(folder: Path) -> dict[str, str]:
    """MLflow's aliases of the model, as digests of builds."""
    from mlflow import MlflowClient

    uri = places(folder).tracking
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    model = client.get_registered_model("tiny")
    versions = {v.version: v.tags["bitsmith.build"] for v in client.search_model_versions("name = 'tiny'")}
    return {alias: versions[version] for alias, version in model.aliases.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, Report]:
    """A folder with the first build, which is the champion, and a worse one. Read only."""
    folder = tmp_path_factory.mktemp("base") / "first"
    return folder, finished(folder), finished(folder, **WORSE)


@pytest.fixture
def copy(base: tuple[Path, Report, Report], tmp_path: Path) -> Path:
    return Path(shutil.copytree(base[0], tmp_path / "copy"))


def test_the_first_that_passes_is_champion_and_a_worse_one_is_candidate(base: tuple[Path, Report, Report]) -> None:
    folder, first, worse = base
    assert first.standing == Standing(champion=True, why="the first build of this recipe that passed")
    assert worse.passed and worse.standing is not None and not worse.standing.champion
    assert worse.standing.why.startswith(f"worse than the champion {first.build_digest[:12]}: KL +")
    assert worse.standing.contrast is not None and worse.standing.contrast.verdict == "worse"
    assert Store(places(folder).store).builds.champions() == {"tiny": first.build_digest}
    assert aliases(folder) == {"champion": first.build_digest, "candidate": worse.build_digest}


def test_the_same_build_again_stays_champion(base: tuple[Path, Report, Report]) -> None:
    assert judged(base[0]) == Standing(champion=True, why="it is the champion")


def test_of_two_that_cannot_be_told_apart_the_newer_is_champion(copy: Path) -> None:
    """The very same packed bytes, behind another gate."""
    standing = judged(copy, gates={"beats_uniform": False, "max_kl": 10.0})
    assert standing.champion and standing.why.startswith("no difference to the champion")
    assert standing.contrast is not None and standing.contrast.difference.value == 0


def test_failed_gates_are_no_champion(copy: Path) -> None:
    standing = judged(copy, gates={"beats_uniform": False, "max_kl": 1e-9})
    assert (standing.champion, standing.why) == (False, "its gates did not pass")


def test_more_bytes_for_another_budget_are_no_achievement(copy: Path) -> None:
    standing = judged(copy, budget={"bits_per_weight": 5.0})
    assert not standing.champion and standing.contrast is None
    assert standing.why.startswith("made for another budget, and ") and standing.why.endswith(
        "larger than the champion"
    )


def test_fewer_bytes_must_not_be_worse(copy: Path) -> None:
    standing = judged(copy, budget={"bits_per_weight": 2.6})
    assert not standing.champion and standing.contrast is not None and standing.contrast.verdict == "worse"


def test_other_text_cannot_be_compared(copy: Path) -> None:
    write_text(copy / "evaluate.jsonl", 8, 99)
    standing = judged(copy)
    assert (standing.champion, standing.why) == (False, "measured on other text than the champion")


def test_another_original_is_compared_by_the_likelihood_of_the_text(copy: Path) -> None:
    nudge(copy / "model", "model.layers.1.mlp.down_proj.weight")
    standing = judged(copy)
    assert standing.metric == "nll" and standing.contrast is not None
    assert standing.champion == (standing.contrast.difference.low <= 0)


def test_a_champion_whose_measurements_are_gone_stays(copy: Path, base: tuple[Path, Report, Report]) -> None:
    store = Store(places(copy).store)
    verdict = next(row for row in base[1].nodes if row.id == "verdict").outputs["verdict"]
    store.artifacts.manifests.delete(verdict)
    standing = judged(copy, **WORSE)
    assert not standing.champion and standing.why.startswith("the champion's measurements are not at hand")
    store.builds.save(base[1].build_digest, {"version": 99})
    assert judged(copy, **WORSE).why == "the champion's record cannot be read"


def test_a_person_may_decide_otherwise(
    copy: Path, base: tuple[Path, Report, Report], capsys: pytest.CaptureFixture[str]
) -> None:
    first, worse = (report.build_digest for report in base[1:])
    assert command(copy, "promote", worse[:8]) == 0
    said = capsys.readouterr().out
    assert f"champion of tiny: {worse[:12]}, in place of {first[:12]}" in said
    assert "the alias champion follows" in said and aliases(copy)["champion"] == worse
    assert command(copy, "builds") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows if row and row[0] == worse[:12]] == ["champion"]
    assert command(copy, "promote", worse[:8], "--undo") == 0
    assert "none; the next build that passes becomes it" in capsys.readouterr().out
    assert Store(places(copy).store).builds.champions() == {} and "champion" not in aliases(copy)


def test_failed_gates_cannot_be_promoted(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = open_build(copy, distill=None, gates={"beats_uniform": False, "max_kl": 1e-9})
    report = assemble(build.runner, run_build(build), Run(1.0, ""))
    build.runner.store.builds.save(report.build_digest, report.model_dump(mode="json"))
    assert command(copy, "promote", report.build_digest[:8]) == 2
    assert "max_kl" in capsys.readouterr().err


def test_promoting_without_mlflow_is_a_matter_of_the_store(copy: Path, base: tuple[Path, Report, Report]) -> None:
    from pipelines.commands.builds import promote

    store, digest = places(copy).store, base[2].build_digest
    options = argparse.Namespace(digest=digest, undo=False, store=store, tracking="http://127.0.0.1:9")
    assert promote(options) == 0
    assert Store(store).builds.champion("tiny") == digest


def test_prune_keeps_the_champion_and_forgets_one_that_is_removed(
    copy: Path, base: tuple[Path, Report, Report]
) -> None:
    store = Store(places(copy).store)
    assert prune(store, keep_builds=0).builds == (base[2].build_digest,)
    (kept,) = store.builds.list()
    assert kept.champion and kept.digest == base[1].build_digest
    store.builds.remove(kept.digest)
    assert store.builds.champions() == {} and prune(store, keep_builds=0).traces


def test_a_recipe_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Not a name"):
        Store(tmp_path).builds.crown("../../etc/passwd", "0" * 64)

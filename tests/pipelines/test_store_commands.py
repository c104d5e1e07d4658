"""Commands that look after the store, on one tiny build that is damaged, altered and made again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from builds import open_build, run_build

from pipelines.assemble import Run, assemble
from pipelines.cli import main
from pipelines.run import MEMO
from schemas.report import Report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A finished, exported and recorded build, without MLflow."""
    folder = tmp_path_factory.mktemp("commands") / "first"
    build = open_build(folder)
    built = run_build(build)
    report = assemble(build.runner, built, Run(1.0, str(folder / "packed")))
    build.runner.store.artifacts.export(report.packed.digest, folder / "packed")
    build.runner.store.builds.save(report.build_digest, report.model_dump(mode="json"))
    return folder, report


@pytest.fixture
def home(made: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The build's folder, its state being the default one."""
    monkeypatch.setenv("BITSMITH_HOME", str(made[0] / "state"))
    return made[0]


@pytest.fixture
def copy(made: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage. Its model is where it was."""
    folder = Path(shutil.copytree(made[0], tmp_path / "copy"))
    monkeypatch.setenv("BITSMITH_HOME", str(folder / "state"))
    return folder


@pytest.fixture
def report(made: tuple[Path, Report]) -> Report:
    return made[1]


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def test_no_build_is_named_by_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", ""]) == 2 and "No such build" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_bad_input(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("lineage", "reproduce"):
        assert main([command, "x" * 300]) == 2 and "too long" in capsys.readouterr().err


def test_builds_lists_pins_and_promotions(copy: Path, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    digest = report.build_digest
    assert main(["promote", digest[:10]]) == 0 and main(["pin", "best", digest[:10]]) == 0
    assert main(["builds"]) == 0
    shown = capsys.readouterr().out
    assert digest[:12] in shown and "tiny" in shown and f"pin best: {digest}" in shown and "champion" in shown
    assert main(["promote", digest, "--undo"]) == 0 and main(["unpin", "best"]) == 0
    assert main(["unpin", "best"]) == 2 and "no such pin" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["builds"],
        ["fsck"],
        ["prune", "--keep-builds", "1"],
        ["lineage", "abcdef"],
        ["reproduce", "abcdef"],
        ["promote", "abcdef"],
        ["pin", "name", "abcdef"],
    ],
)
def test_no_store_is_an_error_and_makes_none(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--store", str(tmp_path / "nothing")]) == 2
    assert "not a Bitsmith store" in capsys.readouterr().err and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["lineage", "0123456789"], "nothing in this store has this digest"),
        (["lineage", "no/such/file"], "neither a file nor a digest"),
        (["lineage", str(ROOT / "tests")], "not a packed folder"),
        (["lineage", str(ROOT / "pyproject.toml")], "nothing in this store"),
        (["lineage", "abcdef", "--depth", "-1"], "--depth"),
        (["reproduce", "abcdef", "--sample", "0"], "--sample"),
        (["prune", "--keep-builds", "-1"], "--keep-builds"),
        (["promote", "0123456789"], "No such build"),
    ],
)
def test_unknown_things_are_errors(
    home: Path, command: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert says in capsys.readouterr().err


def test_fsck_names_damage_and_puts_it_aside(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fsck"]) == 0 and "the store is sound" in capsys.readouterr().out
    victim = sorted(p for p in (copy / "state/store/objects").rglob("*") if p.is_file())[3]
    victim.chmod(0o644)
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    assert main(["fsck", "--json", str(copy / "found.json")]) == 1
    name = str(victim.relative_to(copy / "state/store"))
    found = json.loads((copy / "found.json").read_text())
    assert found["bad"] == [name] and not found["sound"]
    assert f"quarantine: {name}" in capsys.readouterr().out and not victim.exists()


def test_prune_says_what_would_go_then_takes_it(copy: Path, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copy / "state/store")
    assert main(["prune", "--keep-builds", "0", "--dry-run"]) == 0
    foretold = capsys.readouterr().out.splitlines()
    assert f"build {report.build_digest[:12]} would go" in foretold and files(copy / "state/store") == before
    assert main(["prune", "--keep-builds", "0"]) == 0
    done = capsys.readouterr().out.splitlines()[-1]
    assert done == foretold[-1].replace("would go", "gone")
    assert not files(copy / "state/store/objects") and not files(copy / "state/store/traces")
    assert main(["builds"]) == 0 and "no builds" in capsys.readouterr().out


def lineage(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["lineage", *arguments]) == 0
    return capsys.readouterr().out


def test_lineage_of_a_packed_file_reaches_texts_and_tensors(
    home: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = lineage(capsys, str(home / "packed" / "model.safetensors"))
    assert tree == lineage(capsys, str(home / "packed")) == lineage(capsys, report.build_digest[:12])
    assert tree.startswith(f"build {report.build_digest[:12]}, recipe tiny")
    for step in ("pack", "distill", "select", "allocate", "quantize", "calibrate", "tokenize", "kl_probe"):
        assert f" {step} " in tree
    assert str(home / "calibrate.jsonl") in tree and str(home / "model") in tree
    assert "model.layers.0.self_attn.q_proj.weight" in tree and "32 x quantize" in tree
    first = report.allocation[0]
    assert f"{first.format}: " in tree and first.unit in tree
    assert len(tree.splitlines()) < 80 and "(see above)" in tree
    assert len(lineage(capsys, str(home / "packed"), "--depth", "0").splitlines()) == 2


def test_lineage_of_any_digest(home: Path, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_build(home).runner.store
    node = next(row for row in report.nodes if row.step == "quantize")
    item, child = next(iter(store.artifacts.load(node.outputs["candidates"]).children.items()))
    tree = lineage(capsys, child.digest)
    assert "quantize" in tree and item.rpartition("/")[0] in tree and "calibrate" in tree
    row = next(r for r in child.tensors.rows.values())
    holder = row.sha256 if row.data is None else child.digest
    assert "quantize" in lineage(capsys, holder)
    model = next(row for row in report.nodes if row.step == "model")
    assert main(["lineage", model.outputs["model"]]) == 2  # never was in the store


def test_an_altered_file_is_not_what_was_built(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = copy / "packed" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    for path in (weights, weights.parent):
        assert main(["lineage", str(path)]) == 2
        error = capsys.readouterr().err
        assert "this is not what was built" in error and "model.safetensors" in error
    assert main(["lineage", str(copy / "packed" / "config.json")]) == 0  # this one still is


def reproduce(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    MEMO.clear()
    code = main(["reproduce", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_reproduce_gives_the_same_bytes_and_records_nothing(
    home: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(home / "state/store")
    code, out, _ = reproduce(capsys, str(home / "packed"), "--sample", "3", "--seed", "7")
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 different")
    assert "3 of 8 quantized units" in out and f"torch {torch.__version__.partition('+')[0]}" in out
    assert reproduce(capsys, report.build_digest, "--sample", "3", "--seed", "7")[1] == out
    assert reproduce(capsys, report.build_digest, "--sample", "99")[1].endswith("8 same, 0 different\n")
    assert files(home / "state/store") == before


def test_reproduce_finds_a_solver_that_does_something_else(
    home: Path, report: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import steps.quantize.affine as affine

    real, before = affine.build_fit, files(home / "state/store")

    def wider(spec):  # type: ignore[no-untyped-def]
        fit = real(spec)
        return lambda W_OI, *rest: fit(1.5 * W_OI, *rest)

    monkeypatch.setattr(affine, "build_fit", wider)
    code, out, _ = reproduce(capsys, report.build_digest, "--sample", "2")
    assert (code, out.splitlines()[-1]) == (1, "0 same, 2 different")
    assert out.count("DIFFERENT") == 2 and "its facts" in out
    assert files(home / "state/store") == before


def test_reproduce_says_which_versions_changed(
    home: Path, report: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines import items

    monkeypatch.setattr(items, "library_version", lambda name: "9.9")
    code, out, _ = reproduce(capsys, report.build_digest, "--sample", "1")
    assert code == 0 and "-> 9.9" in out


def test_reproduce_needs_the_model_and_the_statistics(
    copy: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = report.packed.digest
    store = open_build(copy).runner.store
    node = next(row for row in report.nodes if row.step == "calibrate")
    for child in store.artifacts.load(node.outputs["statistics"]).children.values():
        store.artifacts.discard(child.digest)
    code, _, error = reproduce(capsys, packed, "--sample", "8")
    assert code == 2 and "no longer in the store" in error
    source = Path(report.model)
    aside = source.rename(source.with_name("aside"))
    try:
        assert reproduce(capsys, packed)[0] == 2
        shutil.copytree(aside, source)
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
        code, _, error = reproduce(capsys, packed)
        assert code == 2 and "not the one that was built from" in error
    finally:
        shutil.rmtree(source, ignore_errors=True)
        aside.rename(source)


def packed_with(threads: int, folder: Path) -> str:
    """Digest of the packed folder of a build up to there, made by so many threads of torch and MKL."""
    build = open_build(folder, formats=["int2-g32", "int4-g64"], budget={"bits_per_weight": 3.6})
    at = [bound.id for bound in build.runner.bound].index("packed")
    del build.runner.bound[at + 1 :]
    MEMO.clear()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run_build(build).outputs["packed"]["packed"]
    finally:
        torch.set_num_threads(before)
        MEMO.clear()


@pytest.mark.parametrize(
    "threads", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_the_packed_file_does_not_depend_on_the_number_of_threads(threads: int, tmp_path: Path) -> None:
    assert packed_with(threads, tmp_path / "several") == packed_with(1, tmp_path / "one")

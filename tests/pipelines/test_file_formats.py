"""One recipe, one plan, several file formats: each packed, verified by its engine, delivered, and verified again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import open_build, run_build, write_recipe
from ggufs import byte_level

from pipelines.assemble import Run, assemble
from pipelines.cli import main
from pipelines.delivery import NOTE, deliver_others, export, write_notes
from pipelines.expand import expand
from pipelines.packings import engine_notes
from schemas.errors import InputError
from schemas.format import read_format
from schemas.recipe import ShortRecipe
from schemas.report import Report

PACK = ["compressed-tensors", {"format": "bitsmith", "shard_bytes": 40_000}, "gguf"]
CHANGES = {
    "pack": PACK,
    "distill": None,
    "formats": ["int4-g32", "int4-g64", "int8-g64"],
    "budget": {"bits_per_weight": 5.0},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A finished, delivered and recorded build, without MLflow."""
    folder = tmp_path_factory.mktemp("formats")
    write_recipe(folder, **CHANGES)
    (folder / "model" / "tokenizer.json").write_text(json.dumps(byte_level(folder)))
    build = open_build(folder, **CHANGES)
    built = run_build(build)
    draft = assemble(build.runner, built, Run(1.0, ""))
    run = Run(1.0, str(export(build, draft.packed.digest)))
    report = assemble(build.runner, built, run).model_copy(update={"also": deliver_others(build, built)})
    write_notes(report)
    build.runner.store.builds.save(report.build_digest, report.model_dump(mode="json"))
    return folder, report


@pytest.fixture(autouse=True)
def home(made: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSMITH_HOME", str(made[0] / "state"))


@pytest.fixture
def report(made: tuple[Path, Report]) -> Report:
    return made[1]


def test_every_file_format_holds_the_same_plan_and_says_its_exact_size(report: Report) -> None:
    told = [(other.node, other.format, other.passed) for other in report.also]
    assert told == [("packed_bitsmith", "bitsmith", True), ("packed_gguf", "gguf", True)]
    every = [(report.packed, report.bytes), *((other.packed, other.bytes) for other in report.also)]
    for packed, size in every:
        weights = [p for p in Path(packed.path).iterdir() if p.suffix in (".safetensors", ".gguf")]
        assert size.predicted == size.actual == sum(p.stat().st_size for p in weights)
    assert len(list(Path(report.also[0].packed.path).glob("model-*.safetensors"))) > 1
    manifests = [json.loads((Path(packed.path) / "bitsmith.json").read_text()) for packed, _ in every]
    assert all(m["formats"] == manifests[0]["formats"] and m["origin"] == manifests[0]["origin"] for m in manifests)
    assert set(manifests[0]["origin"]) == {"base_model", "selection", "plan", "licence"}
    # GGUF and the container are measured with exact weights, compressed-tensors with weights rounded to bf16.
    ours, theirs = (other.measured.kl.value for other in report.also)
    assert theirs == pytest.approx(ours, rel=1e-3) and ours == pytest.approx(report.mixed.kl.value, rel=0.05)
    for packed, _ in every:
        assert json.loads((Path(packed.path) / NOTE).read_text())["build"] == report.build_digest


def test_verify_measures_each_folder_as_its_build_did(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    others = [(other.packed, other.measured.kl) for other in report.also]
    for packed, kl in ((report.packed, report.mixed.kl), *others):
        out = Path(packed.path).parent / "found.json"
        assert main(["verify", packed.path, "--json", str(out)]) == 0
        found = json.loads(out.read_text())
        assert found["measured"]["mixed"]["kl"]["value"] == pytest.approx(kl.value, rel=1e-6)
        assert found["as_recorded"] and found["measured"]["different"] == []
        shown = capsys.readouterr().out
        assert "as recorded: KL" in shown and "every loaded weight is equal" in shown and "tokens/s" in shown


def test_verify_with_model_and_text_needs_no_store(
    made: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = made
    monkeypatch.setenv("BITSMITH_HOME", str(tmp_path / "nowhere"))
    assert main(["verify", report.packed.path]) == 0
    assert "not measured: no build in the store packed this" in capsys.readouterr().out
    named = ["--model", str(folder / "model"), "--text", str(folder / "evaluate.jsonl")]
    assert main(["verify", f"{report.packed.path}/config.json", *named, "--length", "32", "--windows", "4"]) == 0
    assert "nats per token" in capsys.readouterr().out
    assert main(["verify", report.packed.path, named[0], named[1]]) == 2
    assert "--model and --text, or neither" in capsys.readouterr().err


@pytest.mark.slow
def test_llama_cpp_measures_its_file_to_its_own_accuracy(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    from steps.verify.llama import python

    try:
        python()
    except InputError as error:
        pytest.skip(str(error))
    assert main(["verify", report.also[1].packed.path, "--engine", "llama.cpp"]) == 0
    shown = capsys.readouterr().out
    assert "as recorded: KL" in shown and "weights are not compared in this engine" in shown


def test_llama_cpp_reads_gguf_alone(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", report.packed.path, "--engine", "llama.cpp"]) == 2
    assert "llama.cpp reads GGUF" in capsys.readouterr().err


def no_shard(folder: Path) -> None:
    max(folder.glob("model-*.safetensors")).unlink()


def altered(folder: Path) -> None:
    path = max(folder.glob("model-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(("harm", "message"), [(no_shard, "missing"), (altered, "not what was built")])
def test_a_harmed_copy_is_one_error(
    report: Report, tmp_path: Path, harm: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(report.also[0].packed.path, tmp_path / "copy"))
    assert main(["verify", str(copy), "--quick"]) == 0
    harm(copy)
    assert main(["verify", str(copy), "--quick"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown and "Traceback" not in shown


SHORT = {
    "name": "some",
    "model": {"source": "m"},
    "budget": {"bits_per_weight": 4},
    "formats": ["int2-g32", "int4-g32", "int8-row"],
    "sensitivity": "fisher",
}


def test_what_a_short_recipe_may_say_about_files() -> None:
    nodes = expand(ShortRecipe.model_validate({**SHORT, "pack": PACK[:2], "target": "vllm"})).nodes
    assert [f.name for f in nodes["candidates"].spec.formats] == ["int4-g32", "int8-row"]  # type: ignore[union-attr]
    assert nodes["packed"].spec.target == "vllm" and nodes["packed_bitsmith"].spec.target is None  # type: ignore[union-attr]
    assert nodes["packed_bitsmith"].spec.shard_bytes == 40_000 and nodes["plan"].spec.shard_bytes is None  # type: ignore[union-attr]
    assert "plan" in nodes["verdict"].inputs and "plan" not in nodes["verdict_bitsmith"].inputs
    for pack in ("bitsmith", {"format": "bitsmith"}, ["bitsmith"]):
        found = expand(ShortRecipe.model_validate({**SHORT, "pack": pack})).nodes
        assert found["plan"].spec.pack == found["packed"].spec.format == "bitsmith"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="listed twice"):
        ShortRecipe.model_validate({**SHORT, "pack": ["bitsmith", {"format": "bitsmith", "shard_bytes": 5}]})
    with pytest.raises(InputError, match="vllm runs none of the formats"):
        expand(ShortRecipe.model_validate({**SHORT, "formats": ["int3-g32"], "target": "vllm"}))


def test_pre_flight_says_which_engines_run_what_is_offered() -> None:
    recipe = expand(ShortRecipe.model_validate({**SHORT, "pack": PACK[:2]}))
    first, second = engine_notes(recipe, [read_format(name) for name in SHORT["formats"]])  # type: ignore[union-attr]
    assert "packed (compressed-tensors): transformers runs every format on offer; vllm runs 2 of 3 (int2-g32: " in first
    assert "packed_bitsmith (bitsmith): transformers runs every format on offer; vllm runs 0 of 3" in second


def test_the_plan_is_priced_for_the_first_file_format(made: tuple[Path, Report]) -> None:
    """The container's linears are smaller by compressed-tensors' shapes (16 bytes each) and word padding."""
    _, report = made
    assert report.also[0].bpw.linear < report.bpw.linear <= 5.0

"""`python -m steps.verify` where nothing is installed but the model's own libraries, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import tiny_value, write_model
from packables import on_disk, random_selection
from safetensors.torch import load_file, save_file
from selections import selection_of

from schemas.errors import InputError
from schemas.pack import Pack, PackFormat
from steps.pack import run as pack
from steps.pack.read import open_weights
from steps.step import Env
from steps.verify.__main__ import main
from steps.verify.folder import measure_folder, tokens_of
from steps.verify.folder_model import FolderModel, read_text
from steps.verify.integrity import check_folder

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
ABSENT = (
    "accelerate", "compressed_tensors", "dask", "fsspec", "highspy", "matplotlib", "mlflow", "pipelines", "prefect",
    "psutil", "pulp", "rich", "s3fs", "store",
)  # fmt: skip
BARE = """
    import sys
    class Without:
        def __init__(self, finder):
            self.finder = finder
        def __getattr__(self, name):
            return getattr(self.finder, name)
        def find_spec(self, name, path=None, target=None):
            absent = name.partition(".")[0] in {absent}
            return None if absent else self.finder.find_spec(name, path, target)
    sys.meta_path = [Without(finder) for finder in sys.meta_path]
    from steps.verify.__main__ import main
    sys.exit(main(sys.argv[1:]))
"""


def build(folder: Path, form: PackFormat, names: str = "int4-g32", shard_bytes: int | None = None) -> Path:
    """`model` (a whole folder), `text.jsonl` and the packed folder, by plain rounding."""
    model = tiny_value(tied=True, dtype=torch.float32, vocab_size=300, **WIDE)
    on_disk(model, folder / "files")
    write_model(folder / "model", model)
    texts = ["".join(chr(32 + (7 * i + j * j) % 90) for j in range(80)) for i in range(6)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "packed").mkdir()
    files = {p.name: p for p in (folder / "files").iterdir() if p.suffix != ".safetensors"}
    source = type(model)(model.meta, model.tensors, model.children, files)
    spec = Pack(step="pack", format=form, shard_bytes=shard_bytes)
    pack.run(spec, {"model": source, "selection": selection_of(model, names)}, Env(scratch=folder / "packed"))
    return folder / "packed"


def bare(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(BARE).format(absent=ABSENT)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, cwd=cwd
    )


@pytest.mark.parametrize(
    ("form", "load"),
    [
        ("compressed-tensors", "whole"),
        ("compressed-tensors", "blocks"),
        pytest.param("bitsmith", "whole", marks=pytest.mark.slow),
    ],
)
def test_a_bare_machine_measures_what_this_one_does(tmp_path: Path, form: PackFormat, load: str) -> None:
    folder = build(tmp_path, form)
    asked = ["--model", str(tmp_path / "model"), "--text", str(tmp_path / "text.jsonl"), "--length", "32"]
    asked += ["--load", load]
    done = bare([str(folder), *asked, "--json", str(tmp_path / "out.json")], Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert "sound: " in done.stdout and "nats per token" in done.stdout and "licence" in done.stdout
    assert ("speed was not measured" if load == "blocks" else "tokens/s prefill") in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    env = Env(scratch=tmp_path / "scratch")
    env.scratch.mkdir()
    model = FolderModel(tmp_path / "model")
    tokens = tokens_of(model, read_text(tmp_path / "text.jsonl", env.scratch), 32, 128, env)
    here = measure_folder(folder, model, tokens, env)
    assert measure_folder(folder, model, tokens, env, load="blocks")["mixed"] == here["mixed"]
    assert found["measured"]["tokens"] == here["tokens"] > 100
    assert found["measured"]["mixed"]["kl"]["value"] == pytest.approx(here["mixed"]["kl"]["value"], rel=1e-4)
    assert 0 < here["mixed"]["kl"]["low"] < here["mixed"]["kl"]["high"]


def flip(folder: Path) -> None:
    path = next(
        p for p in sorted(folder.glob("*.safetensors")) if any(n.endswith("q_proj.codes") for n in load_file(p))
    )
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-5])


def lose(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def rename_in_header(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes().replace(b"layers.2", b"layers.7", 1))


def lose_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def another_home(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    told = json.loads(path.read_text())
    name, last = max(told["weight_map"].items(), key=lambda pair: pair[1])
    told["weight_map"][name] = last.replace("model-0000", "model-0001")
    path.write_text(json.dumps(told))


def another_format(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"group_size": 32', '"group_size": 64'))


def newer(folder: Path) -> None:
    path = folder / "bitsmith.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))


def no_manifest(folder: Path) -> None:
    (folder / "bitsmith.json").unlink()


def not_json(folder: Path) -> None:
    (folder / "bitsmith.json").write_text("{")


def half_a_manifest(folder: Path) -> None:
    (folder / "bitsmith.json").write_text('{"version": 1, "format": "bitsmith"}')


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (half_a_manifest, r"manifest cannot be read.*wanted: bpw, bytes"),
        (flip, r"not what was built: tensor\n  where: .*sha256"),
        (cut, "damaged or cut short"),
        (lose, "a weights file is missing"),
        (rename_in_header, "not what was built: header"),
        (lose_index, "not what was built: index"),
        (another_home, "not what was built: index"),
        (another_format, "not what was built: quantization_config"),
        (newer, r"newer Bitsmith.*version 9"),
        (no_manifest, "not a packed folder"),
        (not_json, "manifest cannot be read"),
    ],
)
def test_a_harmed_folder_is_one_error(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    folder = build(tmp_path, "bitsmith", shard_bytes=40_000)
    check_folder(folder)
    harm(folder)
    with pytest.raises(InputError, match=f"(?s){message}"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("part", "value", "message"), [("codes", 255, "spare bits set"), ("scale", torch.inf, "scales are not finite")]
)
def test_what_no_packer_writes_is_found_behind_right_digests(
    tmp_path: Path, part: str, value: float, message: str
) -> None:
    model = on_disk(tiny_value(hidden_size=36, intermediate_size=72, head_dim=10), tmp_path / "source")
    selection = random_selection(model, ["int3-row"])
    (tmp_path / "out").mkdir()
    spec = Pack(step="pack", format="bitsmith")
    pack.run(spec, {"model": model, "selection": selection}, Env(scratch=tmp_path / "out"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors[f"model.layers.1.mlp.up_proj.{part}"][-1, -1] = value
    vouch(tmp_path / "out", tensors)
    with pytest.raises(InputError, match=f"(?s){message}.*up_proj"):
        check_folder(tmp_path / "out")


def vouch(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the file and make the manifest agree with it."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "bitsmith.json"
    manifest = json.loads(path.read_text())
    file = open_weights(folder / "model.safetensors")
    manifest["headers"] = {"model.safetensors": file.header}
    manifest["bytes"]["actual"] = file.size
    raw = {n: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}
    manifest["sha256"] = {n: hashlib.sha256(data).hexdigest() for n, data in raw.items()}
    path.write_text(json.dumps(manifest))


def test_bad_input_is_one_message_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build(tmp_path, "bitsmith")
    (tmp_path / "bad.jsonl").write_text('{"words": "no text"}\n')
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    config = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(config.replace('"hidden_size": 64', '"hidden_size": 96'))
    text, model = str(tmp_path / "text.jsonl"), str(tmp_path / "model")
    for arguments, message in (
        ([str(folder), "--model", model], "--model and --text, or neither"),
        ([str(folder), "--model", model, "--text", str(tmp_path / "bad.jsonl")], "the text cannot be read"),
        ([str(folder), "--model", str(tmp_path / "other"), "--text", text], "does not fit its config"),
        ([str(folder), "--model", str(tmp_path), "--text", text], "no readable config.json"),
        ([str(tmp_path)], "not a packed folder"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err

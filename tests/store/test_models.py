"""Source models: what is read when, what digests depend on, and what is refused later than at opening."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, edit_tensors, random_tensors, write_checkpoint
from models import tiny_config

from schemas.calibrate import ModelSource
from schemas.errors import InputError
from store.models import SourceModel, open_model

Q = "model.layers.1.self_attn.q_proj.weight"


def opened(folder: Path | str, cache: Path | None = None) -> SourceModel:
    return open_model(ModelSource(step="model", source=str(folder)), cache)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m", shards=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = opened(write_checkpoint(tmp_path / "m", shards=3, dtype=dtype, tied=False))
    truth = random_tensors(tiny_config(), dtype)
    assert list(model.tensors) == list(truth)
    for name, tensor in truth.items():
        assert torch.equal(model.tensors[name], tensor)
        assert model.meta["shapes"][name] == list(tensor.shape)
        assert model.meta["dtypes"][name] == str(dtype).removeprefix("torch.")


def test_meta_names_the_folder_and_drops_where_it_was_saved_from(folder: Path) -> None:
    edit_json(folder / "config.json", _name_or_path="/home/someone/model")
    model = opened(folder)
    assert model.meta["name"] == "m"
    assert "_name_or_path" not in model.meta["config"]
    assert "lm_head.weight" not in model.meta["shapes"] and "lm_head.weight" not in model.tensors
    assert model.children == {}


def test_files_are_the_tokenizers_and_the_licence_but_no_weights_and_no_code(folder: Path) -> None:
    for name in ("LICENSE", "README.md", "modeling_evil.py", "chat_template.jinja", "training.bin"):
        (folder / name).write_text("x")
    (folder / "sub").mkdir()
    names = {"LICENSE", "chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"}
    files = opened(folder).files
    assert set(files) == names
    assert files["LICENSE"].read_text() == "x"
    assert "README.md" not in files


def test_digest_is_of_content_only(folder: Path, tmp_path: Path) -> None:
    digest = opened(folder).digest
    other = write_checkpoint(tmp_path / "renamed", shards=3)
    (other / "README.md").write_text("not part of the model")
    edit_json(other / "config.json", _name_or_path="elsewhere")
    assert opened(other).digest == digest


def _one_weight(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    tensor = random_tensors(tiny_config(tied=True))["model.embed_tokens.weight"]
    tensor[3, 5] = -tensor[3, 5]
    edit_tensors(path, {"model.embed_tokens.weight": tensor})


def _one_config_value(folder: Path) -> None:
    edit_json(folder / "config.json", rms_norm_eps=1e-6)


def _one_tokenizer_byte(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"version"', ' "version"', 1))


@pytest.mark.parametrize("change", [_one_weight, _one_config_value, _one_tokenizer_byte])
def test_digest_changes_with_any_content(folder: Path, change: Any) -> None:
    before = opened(folder).digest
    change(folder)
    assert opened(folder).digest != before


def test_same_bytes_in_another_dtype_are_another_model(tmp_path: Path) -> None:
    changed = write_checkpoint(tmp_path / "b", dtype=torch.bfloat16)
    digest = opened(changed).digest
    header = changed / "model.safetensors"
    header.write_bytes(header.read_bytes().replace(b'"dtype":"BF16"', b'"dtype":"F16" '))
    assert opened(changed).digest != digest


def test_view_depends_on_its_own_tensors_only(folder: Path) -> None:
    norm, model = "model.norm.weight", opened(folder)
    before, other, tokenizer = (model.view(names).digest for names in ([Q], [norm], []))
    shard = model.shards.spans[Q].shard
    edit_tensors(folder / shard, {Q: -model.tensors[Q]})
    after = opened(folder)
    assert after.view([Q]).digest != before
    assert after.view([norm]).digest == other
    assert after.view([]).digest == tokenizer


def test_view_hands_out_only_what_is_in_its_digest(folder: Path) -> None:
    model = opened(folder)
    view = model.view([Q])
    assert list(view.tensors) == [Q] and torch.equal(view.tensors[Q], model.tensors[Q])
    assert dict(view.files) == {} and view.children == {} and view.meta == model.meta
    assert set(model.view([], files=True).files) == set(model.files)
    assert model.view([], files=True).digest != model.view([]).digest
    with pytest.raises(KeyError):
        view.tensors["model.norm.weight"]
    with pytest.raises(KeyError):
        model.view(["lm_head.weight"])


def test_a_weight_that_changed_during_the_run_is_an_error(folder: Path) -> None:
    model = opened(folder)
    assert model.digest
    shard = model.shards.spans[Q].shard
    edit_tensors(folder / shard, {Q: -model.tensors[Q]})
    with pytest.raises(InputError, match="the model changed during the run") as error:
        model.tensors[Q]
    assert Q in error.value.where and shard in error.value.where


def test_a_file_that_changed_or_went_during_the_run_is_an_error(folder: Path) -> None:
    model = opened(folder)
    assert model.digest
    _one_tokenizer_byte(folder)
    with pytest.raises(InputError, match="the model changed during the run"):
        model.files["tokenizer.json"]
    for shard in model.shards.versions:
        (folder / shard).unlink()
    with pytest.raises(InputError, match="cannot read"):
        model.tensors[Q]


@pytest.mark.parametrize(("bad", "got"), [("nan", "NaN"), ("inf", "inf"), ("-inf", "-inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, bad: str, got: str) -> None:
    tensor = random_tensors(tiny_config(tied=True))[Q]
    tensor[7, 9] = float(bad)
    shard = opened(folder).shards.spans[Q].shard
    edit_tensors(folder / shard, {Q: tensor})
    model = opened(folder)
    with pytest.raises(InputError, match="weights that are not finite") as error:
        model.tensors[Q]
    assert Q in error.value.where and shard in error.value.where and got in error.value.got
    assert model.tensors["model.norm.weight"].isfinite().all()


def test_tied_head_that_is_stored_too_must_be_the_embedding(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    embedding = random_tensors(tiny_config(tied=True))["model.embed_tokens.weight"]
    plain = opened(folder).digest
    edit_tensors(folder / "model.safetensors", {"lm_head.weight": embedding})
    assert opened(folder).digest == plain
    edit_tensors(folder / "model.safetensors", {"lm_head.weight": -embedding})
    with pytest.raises(InputError, match="checkpoint has a different head"):
        opened(folder)


def test_old_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    plain = opened(folder).digest
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    edit_tensors(folder / "model.safetensors", buffer)
    assert opened(folder).digest == plain


def test_opening_reads_headers_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from store.sources.places import LocalPlace

    read: dict[str, int] = {}
    original = LocalPlace.read

    def counting(self: LocalPlace, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        raw = original(self, name, start, stop)
        read[name] = read.get(name, 0) + len(raw)
        return raw

    monkeypatch.setattr(LocalPlace, "read", counting)
    model = opened(folder)
    for shard in model.shards.versions:
        begin = min(span.start for span in model.shards.spans.values() if span.shard == shard)
        assert read[shard] == 2 * begin  # once for its digest, once for its spans
    assert model.tensor_digests[Q]
    read.clear()
    assert model.tensors[Q] is not None
    assert read == {model.shards.spans[Q].shard: 2 * 32 * 32}


def test_importing_and_checking_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from schemas.calibrate import ModelSource\n"
        "import store.texts; from store.models import open_model\n"
        f"model = open_model(ModelSource(step='model', source={str(folder)!r})); model.digest\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 's3fs', 'mlflow', 'prefect'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_config_is_json_as_transformers_writes_it(folder: Path) -> None:
    assert opened(folder).meta["config"] == json.loads((folder / "config.json").read_text())

"""Checkpoints that are damaged, incomplete or hostile: each gives its one error, from headers alone, and quickly."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, edit_tensors, read_header, write_checkpoint, write_raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.calibrate import ModelSource
from schemas.errors import InputError
from store.models import open_model

NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
Edit = Callable[[dict[str, Any], bytes], tuple[dict[str, Any] | bytes, bytes]]


def refused(folder: Path | str, message: str) -> InputError:
    """Opening the folder raises the error; it says where and what to do."""
    with pytest.raises(InputError, match=message) as error:
        open_model(ModelSource(step="model", source=str(folder)))
    assert error.value.where and error.value.fix
    return error.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m")


def _entry(name: str, **change: Any) -> Edit:
    return lambda header, data: ({**header, name: {**header[name], **change}}, data)


def _overlap(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    first = min((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][0])
    begin, end = header[first]["data_offsets"]
    shifted = {n: e for n, e in header.items() if n not in (first, "__metadata__")}
    for entry in shifted.values():
        entry["data_offsets"] = [v - (end - begin) // 2 for v in entry["data_offsets"]]
    return {first: header[first], **shifted}, data


def _gap(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [v + 64 for v in entry["data_offsets"]]
    return header, b"\0" * 64 + data


HEADERS: dict[str, tuple[Edit, str]] = {
    "unknown dtype": (_entry(NORM, dtype="BF17"), "dtype 'BF17'"),
    "dtype not a string": (_entry(NORM, dtype=["BF16"]), "dtype \\['BF16'\\]"),
    "negative offset": (_entry(NORM, data_offsets=[-64, 0]), "offsets \\[-64, 0\\]"),
    "negative size": (_entry(NORM, shape=[-32]), "shape \\[-32\\]"),
    "fractional size": (_entry(NORM, shape=[32.0]), "shape \\[32.0\\]"),
    "true as size": (_entry(NORM, shape=[True]), "shape \\[True\\]"),
    "huge size": (_entry(NORM, shape=[2**63]), "lists of integers"),
    "product overflow": (_entry(NORM, shape=[2**40, 2**40]), "64 bytes"),
    "size and offsets differ": (_entry(NORM, shape=[33]), "66 bytes for BF16"),
    "three offsets": (_entry(NORM, data_offsets=[0, 64, 64]), "data_offsets|offsets"),
    "offsets far away": (_entry(NORM, data_offsets=[2**50, 2**50 + 64]), "leaves a gap"),
    "entry not an object": (lambda h, d: ({**h, NORM: [1]}, d), "dtype, shape and data_offsets"),
    "overlap": (_overlap, "overlaps the tensor before it"),
    "gap": (_gap, "leaves a gap before it"),
    "cut off data": (lambda h, d: (h, d[:-10]), "by its header"),
    "bytes after the end": (lambda h, d: (h, d + b"x"), "by its header"),
    "not JSON": (lambda h, d: (b"{nonsense", d), "not valid JSON"),
    "not an object": (lambda h, d: (b"[1, 2]", d), "not a JSON object"),
    "not UTF-8": (lambda h, d: (b'{"\xff": 1}', d), "not valid JSON"),
    "name twice": (lambda h, d: (b'{"a": 1, "a": 2}', d), "'a' occurs twice"),
    "deep nesting": (lambda h, d: (b'{"a":' * 100_000, d), "nested too deeply"),
    "infinity": (lambda h, d: (b'{"a": Infinity}', d), "Infinity is not JSON"),
    "long number": (lambda h, d: (b'{"a": ' + b"9" * 5000 + b"}", d), "not valid JSON"),
    "lone surrogate": (lambda h, d: (b'{"\\ud800": 1}', d), "not valid JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_header(folder: Path, case: str) -> None:
    edit, message = HEADERS[case]
    path = folder / "model.safetensors"
    header, data = edit(*read_header(path))
    write_raw(path, header, data)
    error = refused(folder, message)
    assert "model.safetensors" in error.where


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "0 bytes"),
        (b"\1\0\0", "3 bytes"),
        (b"\xff" * 64, "a header of 18446744073709551615 bytes"),
        ((2**40).to_bytes(8, "little") + b"{}", "a header of 1099511627776 bytes"),
        ((5000).to_bytes(8, "little") + b"{}", "cut off within its header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a header of"),
    ],
)
def test_not_a_safetensors_file(folder: Path, raw: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(raw)
    refused(folder, message)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "pickle.bin", 3, ""],
)
def test_index_may_only_name_shards_of_the_folder(tmp_path: Path, name: Any) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][NORM] = name
    path.write_text(json.dumps(index))
    error = refused(folder, "names a file that is not a shard of this folder")
    assert NORM in error.where and repr(name) == error.got


def test_index_without_map(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    edit_json(folder / "model.safetensors.index.json", weight_map=[])
    refused(folder, "without a weight_map")


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert refused(folder, "1 of 3 shards are missing").got == "model-00002-of-00003.safetensors"


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names, shard = index["weight_map"], "model-00001-of-00002.safetensors"
    path.write_text(json.dumps({"weight_map": {**names, "ghost": shard}}))
    refused(folder, "shards and index disagree")
    path.write_text(json.dumps({"weight_map": {n: s for n, s in names.items() if n != NORM}}))
    assert NORM in refused(folder, "shards and index disagree").where


def test_pickles_are_refused_by_name(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    open_model(ModelSource(step="model", source=str(folder)))  # never looked at beside safetensors
    (folder / "model.safetensors").unlink()
    error = refused(folder, "pickle checkpoints are not read")
    assert error.got == "pytorch_model.bin" and "save_pretrained" in error.fix


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "config.json" in refused(folder, "no weights found").got


def test_missing_and_unknown_parameters(folder: Path) -> None:
    edit_tensors(folder / "model.safetensors", {Q: None, "model.layers.0.self_attn.q_proj.weight_scale": torch.ones(2)})
    error = refused(folder, "does not fit its config")
    assert error.got == f"1 missing: {Q}; 1 unknown: {Q}_scale"


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"num_hidden_layers": 2}),
        ("llama", {"num_hidden_layers": 4}),
        ("llama", {"attention_bias": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("qwen2", {"model_type": "llama"}),  # biases that a llama does not have
        ("qwen3", {"model_type": "llama"}),  # q_norm and k_norm
        ("llama", {"model_type": "qwen3"}),
    ],
)
def test_other_parameters_than_the_config_says(tmp_path: Path, family: str, change: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "m", family)
    edit_json(folder / "config.json", **change)
    refused(folder, "does not fit its config")


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 64}, {"num_key_value_heads": 4}, {"head_dim": 16}, {"intermediate_size": 96}, {"vocab_size": 96}],
)
def test_other_shapes_than_the_config_says(folder: Path, change: dict[str, int]) -> None:
    edit_json(folder / "config.json", **change)
    error = refused(folder, "shape does not fit the config")
    assert "model.safetensors: model." in error.where and error.got and error.wanted


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64])
def test_dtypes_that_are_not_original_weights(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder / "model.safetensors", {Q: torch.ones(32, 32).to(dtype)})
    assert Q in refused(folder, "dtype that is not quantized from").where


def test_quantized_models_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    refused(folder, "already quantized")


def test_unsupported_architecture_is_named(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="mamba")
    assert refused(folder, "unsupported model architecture").got == "mamba"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"rms_norm_eps": NaN}', "NaN is not JSON"),
        (b"\xff\xfe{\0}\0", "not valid JSON"),
    ],
)
def test_config_that_does_not_parse(folder: Path, raw: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(raw)
    assert refused(folder, message).where.endswith("config.json")


def test_places_that_are_not_models(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere" / "at" / "all", "no such file or folder")
    refused(folder / "config.json", "a model is a folder, not a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    with pytest.raises(InputError, match="a revision was given for a folder"):
        open_model(ModelSource(step="model", source=str(folder), revision="main"))


SPLINTERS = (b"9" * 20, b'"', b"null", b"[", b'{"a":', b"-1", b"1e999", b"true", b"\xff", b"\0", b"")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_damage_opens_or_gives_an_input_error(folder: Path, data: st.DataObject) -> None:
    """Splinters of JSON put over the config and the header, anywhere: no other exception, no hang, no memory."""
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    whole = path.read_bytes()
    position = data.draw(st.integers(0, min(len(whole), 3000)))
    skipped = data.draw(st.integers(0, 5))
    path.write_bytes(whole[:position] + data.draw(st.sampled_from(SPLINTERS)) + whole[position + skipped :])
    with suppress(InputError):
        open_model(ModelSource(step="model", source=str(folder)))
    path.write_bytes(whole)

"""A GGUF file: exact size, what third parties make of it, and what happens to one that is damaged."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from ggufs import TEXTS, WIDE, byte_level, model_on_disk, quantized, selection, sentencepiece
from models import tiny_config
from selections import fmt

from schemas.errors import InputError
from schemas.pack import Pack
from steps.model.structure import units
from steps.pack import gguf_tokenizer
from steps.pack import run as pack
from steps.pack.engines import model_refusals, refusals
from steps.pack.gguf import FILE, decode, encode
from steps.pack.gguf_file import header_bytes, read_header, read_path
from steps.pack.gguf_metadata import refusals as metadata_refusals
from steps.pack.gguf_metadata import rope_factors
from steps.pack.sizes import file_bytes, metadata_size, plan_linears, unit_bytes
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Env, Output
from steps.verify.gguf import GgufFile
from steps.verify.load_packed import different_weights, load

EVERY = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q5_0", "iq4_nl", "tq1_0", "tq2_0", "f16"]
EXACT = ["int4-g32", "int5-g64-sym", "int8-row"]
FAMILIES = [("llama", "bpe"), ("mistral", "sentencepiece"), ("qwen2", "bpe"), ("qwen3", "bpe")]


def packed(model: Output, chosen: Output, folder: Path) -> Output:
    """The packed value; its files lie in `folder`."""
    folder.mkdir()
    inputs = {"model": model, "selection": chosen}
    return pack.run(Pack(step="pack", format="gguf"), inputs, Env(scratch=folder))["packed"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Output, Output, Path]:
    """A llama in all formats at once, tied: model, packed value, folder."""
    folder = tmp_path_factory.mktemp("gguf")
    model = model_on_disk(folder / "source", tied=True, num_hidden_layers=4)
    chosen = selection(model, [fmt(name) for name in EVERY + EXACT])
    return model, packed(model, chosen, folder / "out"), folder / "out"


@pytest.mark.parametrize(("family", "tokenizer"), FAMILIES, ids=[f for f, _ in FAMILIES])
def test_transformers_loads_what_was_packed_and_the_size_was_foretold(
    family: str, tokenizer: str, tmp_path: Path
) -> None:
    model = model_on_disk(tmp_path / "source", family, tokenizer)
    chosen = selection(model, [fmt(name) for name in EVERY[:6] + EXACT[:2]])
    out = packed(model, chosen, tmp_path / "out")
    loaded = load(tmp_path / "out", "cpu")
    assert loaded.dtype == torch.float32 and loaded.config.model_type == ("llama" if family == "mistral" else family)
    assert different_weights(loaded, model, chosen) == []
    config, files, plan = model.meta["config"], model.files, {u: fmt(n) for u, n in chosen.meta["plan"].items()}
    shapes = {name: tuple(shape) for name, shape in model.meta["shapes"].items()}
    cut = units(config, shapes)
    extra = metadata_size("gguf", config, files)
    size = file_bytes("gguf", config, shapes, model.meta["dtypes"], plan_linears(plan, cut), metadata=extra)
    assert size == out.meta["bytes"]["predicted"] == out.meta["bytes"]["actual"] == out.files[FILE].stat().st_size
    other = dict.fromkeys(plan, fmt("q8_0"))
    larger = file_bytes("gguf", config, shapes, model.meta["dtypes"], plan_linears(other, cut), metadata=extra)
    difference = sum(unit_bytes("gguf", other[u.name], u) - unit_bytes("gguf", plan[u.name], u) for u in cut)
    assert larger - size == difference, "bytes of a plan add up"


def test_every_format_in_one_file(built: tuple[Output, Output, Path]) -> None:
    """The `gguf` package's reader sees our types; ours reads the matrices back; digests are those of the manifest."""
    model, _, folder = built
    reader = gguf.GGUFReader(folder / FILE)
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert {"Q2_K", "Q6_K", "TQ1_0", "IQ4_NL", "F16", "Q4_0", "BF16", "F32"} <= set(types.values())
    assert types["blk.0.attn_norm.weight"] == "F32" and "output.weight" not in types
    read = GgufFile(folder / FILE, model.meta["config"])
    manifest = json.loads((folder / "bitsmith.json").read_text())
    assert read.digests() == manifest["sha256"]
    for name, form in manifest["formats"].items():
        found = read.matrix(name, fmt(form))
        expected = gguf.quants.dequantize
        tensor = next(t for t in reader.tensors if t.name == gguf_of(name))
        rows = torch.from_numpy(expected(tensor.data, tensor.tensor_type).copy())
        if name.endswith(("q_proj", "k_proj")):
            heads = len(rows) // 64
            rows = rows.view(heads, 32, 2, -1).transpose(1, 2).reshape(rows.shape)
        assert torch.equal(found.dequantize(), rows.view(found.shape)), name


def gguf_of(module: str) -> str:
    """The name in the file, by the package's own table."""
    name = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 4).get_name(module)
    return f"{name}.weight"


def test_the_same_plan_gives_the_same_bytes(built: tuple[Output, Output, Path], tmp_path: Path) -> None:
    model, out, _ = built
    again = packed(model, selection(model, [fmt(name) for name in EVERY + EXACT]), tmp_path / "again")
    assert again.files[FILE].read_bytes() == out.files[FILE].read_bytes()


def test_headers_are_read_as_they_are_written(built: tuple[Output, Output, Path]) -> None:
    header, data = read_path(built[2] / FILE)
    start = header.starts[0]
    assert header_bytes(header.metadata, header.tensors) == bytes(data[:start])
    fields = gguf.GGUFReader(built[2] / FILE).fields
    for key, value in header.metadata.items():
        theirs = fields[key].contents()
        assert theirs == pytest.approx(value) if isinstance(value, float) else theirs == value


def test_a_file_cut_anywhere_is_one_clear_error(built: tuple[Output, Output, Path], tmp_path: Path) -> None:
    whole = (built[2] / FILE).read_bytes()
    draws = random.Random(0)
    for size in (0, 3, 4, 20, 27, 100, len(whole) - 1, *(draws.randrange(len(whole)) for _ in range(40))):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            read_path(path)
        assert str(path) in str(caught.value)


def test_a_damaged_header_is_an_error_or_another_header_but_nothing_else(built: tuple[Output, Output, Path]) -> None:
    """Any byte, any value: never another exception, never a tensor outside the file."""
    _, out, folder = built
    whole = bytearray((folder / FILE).read_bytes())
    draws = random.Random(1)
    for _ in range(300):
        at, value = draws.randrange(out.meta["bytes"]["header"]), draws.choice([0, 1, 127, 128, 255])
        before, whole[at] = whole[at], value
        try:
            header = read_header(memoryview(whole), "x")
        except InputError:
            pass
        else:
            ends = [s + i.nbytes for s, i in zip(header.starts, header.tensors, strict=True)]
            assert max(ends, default=0) <= len(whole)
        whole[at] = before


def test_a_cut_file_is_refused_before_transformers_sees_it(built: tuple[Output, Output, Path], tmp_path: Path) -> None:
    model, _, folder = built
    (tmp_path / "config.json").write_text(json.dumps(model.meta["config"]))
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes()[:-64])
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path, "cpu")


@pytest.mark.parametrize("name", EXACT)
def test_affine_codes_and_scales_come_back(name: str) -> None:
    q = quantized("m", fmt(name), (8, 128), 0)
    assert isinstance(q, AffineTensor)
    back = decode("m", fmt(name), encode(q, 2), 2)
    assert isinstance(back, AffineTensor) and torch.equal(back.codes_OI, q.codes_OI)
    assert torch.equal(back.scale_OG.float(), q.scale_OG.float()) and torch.equal(back.dequantize(), q.dequantize())


def test_a_scale_that_fp16_does_not_hold_is_refused() -> None:
    q = quantized("m", fmt("int4-g32"), (8, 64), 0)
    assert isinstance(q, AffineTensor)
    q.scale_OG[3, 1] = 1e-7
    with pytest.raises(InputError, match=r"(?s)too small or too large.*m.*q4_0"):
        encode(q)


def test_formats_and_rows_that_do_not_fit_are_said_before_the_build() -> None:
    config = tiny_config(**WIDE)
    cut = units(config, {n: s for n, s in shapes_of(config).items()})
    assert refusals("gguf", [fmt(n) for n in EVERY + EXACT], config, cut) == []
    reasons = refusals("gguf", [fmt("int3-g64"), fmt("int4-g32-asym"), fmt("int6-row")], config, cut)
    assert len(reasons) == 3 and "use q3_k" in reasons[0] and "use int4-g32," in reasons[1] and "use q6_k" in reasons[2]
    narrow = tiny_config(hidden_size=96, intermediate_size=48, head_dim=24)
    cut = units(narrow, shapes_of(narrow))
    reasons = refusals("gguf", [fmt("q4_k"), fmt("q8_0"), fmt("int4-row")], narrow, cut)
    assert [r.split(":")[0] for r in reasons] == ["q4_k", "q8_0", "int4-row"] and "blocks of 32" in reasons[2]


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape."""
    from schemas.structure import expected_shapes

    return expected_shapes(config, "here")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mixtral"}, "not for mixtral"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.1}}, "attention_factor"),
        ({"model_type": "qwen3", "attention_bias": True}, "biases"),
    ],
)
def test_models_that_llama_cpp_computes_otherwise_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert [reason in text for text in metadata_refusals(tiny_config() | changes)] == [True]


def test_rope_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = tiny_config(head_dim=64, rope_parameters=scaled, max_position_embeddings=131072)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig.from_dict(config), "cpu")
    factors = rope_factors(config)
    assert factors is not None and len(factors) == 32 and {1.0, 8.0} < set(factors)
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(plain / torch.tensor(factors), inverse, rtol=1e-5, atol=0)


BROKEN: list[tuple[str, Any]] = [
    ("Unigram", lambda t: t["model"].update(type="Unigram")),
    ("normalizes text", lambda t: t.update(normalizer={"type": "Lowercase"})),
    ("not bytes", lambda t: t["pre_tokenizer"].update(add_prefix_space=True)),
    ("not bytes", lambda t: t.update(pre_tokenizer=None)),
    ("no name for how", lambda t: t.update(pre_tokenizer=split(r"\d+", t["pre_tokenizer"]))),
    ("ignore_merges", lambda t: t["model"].update(ignore_merges=True)),
    ("marks within words", lambda t: t["model"].update(end_of_word_suffix="</w>")),
    ("token 400", lambda t: t["model"]["vocab"].update(far=400)),
]


def split(pattern: str, rest: dict[str, Any]) -> dict[str, Any]:
    """A Split before byte-level merging."""
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, {**rest, "use_regex": False}]}


@pytest.mark.parametrize(("reason", "change"), BROKEN, ids=[r for r, _ in BROKEN])
def test_a_tokenizer_that_gguf_cannot_express_is_refused(reason: str, change: Any, tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    assert gguf_tokenizer.refusal(tokenizer, 300) is None
    change(tokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    (text,) = model_refusals("gguf", tiny_config(vocab_size=300), files)
    assert "cannot express the tokenizer" in text and reason in text


def test_sentencepiece_orders_that_are_none_are_refused(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    assert gguf_tokenizer.refusal(tokenizer, 300) is None
    merges = tokenizer["model"]["merges"]
    twice = merges.index(["\u2581a", "b"])
    for changed, reason in (
        ([*merges[:twice], *merges[twice + 1 :], merges[twice]], "do not stand together"),
        (merges[:twice] + merges[twice + 1 :], "are tokens that are not joined"),
        (merges[1:], "no merge makes"),
    ):
        text = gguf_tokenizer.refusal({**tokenizer, "model": {**tokenizer["model"], "merges": changed}}, 300)
        assert text is not None and reason in text


def test_scores_of_pieces_join_text_as_tokenizers_does(tmp_path: Path) -> None:
    """llama.cpp's rule, written out: join the neighbours whose joint token has the highest score, leftmost first."""
    from tokenizers import Tokenizer

    document = sentencepiece(tmp_path)
    theirs = Tokenizer.from_str(json.dumps(document))
    told = gguf_tokenizer.metadata(
        {**document, "tokenizer_config.json": {}, "generation_config.json": {}, "chat_template": None},
        {"vocab_size": 300},
    )
    tokens, scores = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.scores"]
    score = {t: s for t, s, kind in zip(tokens, scores, told["tokenizer.ggml.token_type"], strict=True) if kind == 1}
    letters = "ab hello,wor dt"
    draws = random.Random(2)
    for text in [*TEXTS[3:], *("".join(draws.choices(letters, k=12)) for _ in range(200))]:
        pieces = list("\u2581" + text.replace(" ", "\u2581")) if text else []
        while True:
            pairs = [(score[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in score]
            if not pairs:
                break
            at = -max(pairs)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        assert theirs.encode(text, add_special_tokens=False).tokens == pieces, text


def test_special_tokens_and_template_are_told(built: tuple[Output, Output, Path], tmp_path: Path) -> None:
    told = read_path(built[2] / FILE)[0].metadata
    assert told["tokenizer.ggml.model"] == "gpt2" and told["tokenizer.ggml.pre"] == "gpt-2"
    assert (told["tokenizer.ggml.bos_token_id"], told["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert told["tokenizer.ggml.add_bos_token"] is False and told["tokenizer.chat_template"] == "{{ messages }}\n"
    assert len(told["tokenizer.ggml.tokens"]) == 300 and told["tokenizer.ggml.tokens"][-1] == "[PAD299]"
    model = model_on_disk(tmp_path / "sp", "mistral", "sentencepiece")
    told = dict(gguf_tokenizer.metadata(gguf_tokenizer.read(model.files), model.meta["config"]))
    assert told["tokenizer.ggml.model"] == "llama" and told["tokenizer.ggml.add_bos_token"] is True
    assert told["tokenizer.ggml.add_space_prefix"] is True

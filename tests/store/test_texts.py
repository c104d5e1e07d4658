"""Texts become documents; what is not text is refused with the place and the reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.calibrate import TextSource
from schemas.errors import InputError
from store.texts import CHUNK_CHARACTERS, Documents, read_documents, split_text


def read(path: Path | str, field: str = "text", **options: Path) -> Documents:
    return read_documents(TextSource(step="text", source=str(path), field=field), **options)  # type: ignore[arg-type]


def refused(path: Path | str, message: str, field: str = "text") -> InputError:
    with pytest.raises(InputError, match=message) as error:
        read(path, field)
    assert error.value.where
    return error.value


def test_short_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffGrüße,\r\nWelt\n".encode())
    found = read(tmp_path / "a.txt", cache=tmp_path / "cache")
    assert found.texts == ("Grüße,\r\nWelt\n",) and found.names == ("a.txt#1",) and found.notes == ()
    assert found.meta["digests"] == [hashlib.sha256(found.texts[0].encode()).hexdigest()]
    assert dict(found.tensors) == {} and dict(found.children) == {}


def test_long_file_is_cut_at_paragraphs_with_a_note(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}. " + "word " * 80 + "\n\n" for i in range(40)]
    (tmp_path / "book.txt").write_text("".join(paragraphs))
    found = read(tmp_path / "book.txt")
    assert "".join(found.texts) == "".join(paragraphs)
    assert len(found.texts) > 5 and all(t.startswith("Paragraph") for t in found.texts)
    assert all(len(t) >= CHUNK_CHARACTERS for t in found.texts[:-1])
    assert f"cut at paragraph ends into {len(found.texts)} documents" in found.notes[0]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab \n\t\ré", max_size=400), st.integers(1, 40))
def test_pieces_join_to_the_text(text: str, size: int) -> None:
    pieces = split_text(text, size)
    assert "".join(pieces) == text
    assert all(size <= len(piece) <= 2 * size for piece in pieces[:-1])
    assert not pieces or 0 < len(pieces[-1]) <= 2 * size


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("aaaa\n\nbbbb", ["aaaa\n\n", "bbbb"]),
        ("aaaa\r\n\r\nbbbb", ["aaaa\r\n\r\n", "bbbb"]),
        ("aaaaa\nbbbb", ["aaaaa\n", "bbbb"]),
        ("aaaaa bbbb", ["aaaaa ", "bbbb"]),
        ("aaaaaaaaaa", ["aaaa", "aaaaaa"]),
    ],
)
def test_cuts_prefer_paragraphs_then_lines_then_words(text: str, pieces: list[str]) -> None:
    assert split_text(text, 4) == pieces


def test_folder_is_read_by_name_with_subfolders(tmp_path: Path) -> None:
    for name, text in {"b.md": "B", "a.txt": "A" * 5000, "sub/c.TXT": "C", "x.py": "code", "empty.txt": " \n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = read(tmp_path)
    assert found.names == ("a.txt", "b.md", "sub/c.TXT") and found.texts[0] == "A" * 5000
    assert found.notes == ("1 files that are not .txt or .md left out", "1 empty documents left out of 4")


def test_jsonl_reads_the_field_and_the_name(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"name": "n", "text": "one\u2028still one", "x": 1}\n\n{"text": "two"}\r\n{"text": ""}\n')
    found = read(path)
    assert found.texts == ("one\u2028still one", "two") and found.names == ("n", "line 3")
    assert found.notes == ("1 empty documents left out of 3",)
    path.write_text('{"body": "b"}')
    assert read(path, "body").texts == ("b",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 'x'}", "not valid JSON"),
        ('{"text": "x"', "not valid JSON"),
        ('["x"]', "not a JSON object"),
        ('{"body": "x"}', "no text in field 'text'"),
        ('{"text": 3}', "no text in field 'text'"),
        ('{"text": null}', "no text in field 'text'"),
        ('{"text": "\\ud800"}', "not valid JSON"),
        ('{"text": "x", "text": "y"}', "not valid JSON"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n' * 3 + line + "\n")
    assert refused(path, message).where.endswith("d.jsonl, line 4")


@pytest.mark.parametrize(
    ("name", "raw", "message", "got"),
    [
        ("a.txt", b"good \xff bad", "not a UTF-8 text file", "byte 0xff at offset 5"),
        ("a.txt", "text".encode("utf-16"), "not a UTF-8 text file", "offset 0"),
        ("a.txt", b"\x7fELF\x02\x01\x01\0\0", "not a UTF-8 text file", "a zero byte at offset 7"),
        ("a.txt", b"", "no text", "0 empty documents"),
        ("a.txt", b" \n\t\n", "no text", "1 empty documents"),
        ("a.jsonl", b"\n\n", "no text", "0 empty documents"),
        ("a.json", b'[{"text": "x"}]', "not a text file", ""),
        ("a.parquet", b"PAR1", "not a text file", ""),
        ("a.jsonl", b'{"text": "\xe9"}', "not a UTF-8 text file", "byte 0xe9"),
    ],
)
def test_what_is_not_text(tmp_path: Path, name: str, raw: bytes, message: str, got: str) -> None:
    (tmp_path / name).write_bytes(raw)
    assert got in refused(tmp_path / name, message).got


def test_places_without_text(tmp_path: Path) -> None:
    assert refused(tmp_path, "no text files in the folder").got == "0 other files"
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    assert "JSONL is named as a file" in refused(tmp_path, "no text files in the folder").wanted
    refused(tmp_path / "gone.txt", "no such file or folder")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    assert refused(tmp_path, "not a UTF-8 text file").where.endswith("bad.txt")


def test_files_too_large_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(2**30 + 1)
    refused(tmp_path / "big.txt", "text file too large")


def test_builtin_texts_are_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"name": "n", "text": "t"}\n')
    found = read_documents(TextSource(step="text", source="builtin:mine"), builtins={"mine": path})
    assert found.texts == ("t",)
    with pytest.raises(InputError, match="unknown built-in text") as error:
        read_documents(TextSource(step="text", source="builtin:other"), builtins={"mine": path})
    assert error.value.wanted == "builtin:mine"


def test_digest_is_of_the_texts_only(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"a-{folder}.txt").write_text("alpha")
        (tmp_path / folder / f"b-{folder}.txt").write_text("beta")
    (tmp_path / "two" / "c.rst").write_text("left out")
    lines = tmp_path / "same.jsonl"
    lines.write_text('{"text": "alpha"}\n{"text": "beta"}\n')
    digest = read(tmp_path / "one").digest
    assert read(tmp_path / "two").digest == digest == read(lines).digest
    lines.write_text('{"text": "alpha"}\n{"text": "Beta"}\n')
    assert read(lines).digest != digest
    lines.write_text('{"text": "beta"}\n{"text": "alpha"}\n')
    assert read(lines).digest != digest


def test_documents_file_gives_the_texts_back(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"name": "ü", "text": 'quote " \\ \u2028 \n tab\t'}))
    for cache in (tmp_path / "cache", None):
        found = read_documents(TextSource(step="text", source=str(path)), cache)
        (line,) = found.files["documents.jsonl"].read_text("utf-8").rstrip("\n").split("\n")
        assert json.loads(line) == {"name": "ü", "text": found.texts[0]}

"""JSON from outside, read strictly."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from schemas.errors import InputError


def json_object(raw: bytes | bytearray, where: str, fix: str = "repair or replace the file") -> dict[str, Any]:
    """The object that `raw` spells; InputError for anything else: bad UTF-8, a key twice, NaN, nesting without end."""
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode()  # lone surrogates, which no later digest could encode
    except RecursionError:
        raise InputError("JSON nested too deeply", where=where, fix=fix) from None
    except ValueError as error:  # JSONDecodeError and UnicodeError are ValueErrors
        raise InputError("not valid JSON", where=where, got=error, wanted="a JSON object", fix=fix) from None
    if not isinstance(found, dict):
        raise InputError("not a JSON object", where=where, got=type(found).__name__, wanted="an object", fix=fix)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"key {name!r} occurs twice")
        document[name] = value
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

"""What is wrong with a recipe, said once each and located as the user wrote it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

KINDS_OF_VALUE = {
    "model_type": "wanted fields with values",
    "model_attributes_type": "wanted fields with values",
    "dict_type": "wanted names with values",
    "tuple_type": "wanted a list",
}
"""Types of faults of which the library's own words name its classes."""

Location = tuple[str, ...]


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[str]:
    """One line a fault: `path.to.field: what is wrong`. `data` is what was validated.

    Where a value may be of several kinds, the library tells for each kind why it is not that one. Those stand in one
    line; and if something within the value is at fault, its being no other kind does not count.
    """
    faults = error.errors()
    names = _field_names(model)
    raw = [fault["loc"] for fault in faults]
    paths = [_path(fault, data) for fault in faults]
    lines: dict[Location, dict[str, None]] = {}
    for own, path, fault in zip(raw, paths, faults, strict=True):
        if not any(_within(other, own) for other in raw) and not any(_within(other, path) for other in paths):
            lines.setdefault(path, {})[_message(fault, names)] = None
    return [f"{'.'.join(path) or 'recipe'}: {', or: '.join(messages)}" for path, messages in lines.items()]


def _within(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _path(fault: Any, data: Any) -> Location:
    """The names and numbers by which the user's own value is reached: without the kinds that a validator tried."""
    path, here = list[str](), data
    for part in fault["loc"]:
        if isinstance(here, dict):
            key = next((key for key in here if str(key) == str(part)), None)
            if key is None:
                continue
            here = here[key]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            continue
        path.append(str(part))
    return (*path, str(fault["loc"][-1])) if fault["type"] == "missing" else tuple(path)


def _message(fault: Any, names: set[str]) -> str:
    context = fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            return "unknown field" + _suggest(str(fault["loc"][-1]), names)
        case "union_tag_invalid":
            kind = context["discriminator"].strip("'")
            hint = _suggest(str(context["tag"]), _quoted(context["expected_tags"]))
            return f"unknown {kind} {context['tag']!r}; wanted {context['expected_tags']}{hint}"
        case "union_tag_not_found":
            return f"field {context['discriminator']} is missing"
        case "literal_error":
            hint = _suggest(str(fault["input"]), _quoted(context["expected"]))
            return f"unknown {fault['input']!r}; wanted {context['expected']}{hint}"
        case kind if kind in KINDS_OF_VALUE:
            return f"{KINDS_OF_VALUE[kind]}, got {fault['input']!r}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _quoted(text: str) -> list[str]:
    """The words in quotes in one of pydantic's messages."""
    return re.findall(r"'([^']*)'", text)


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, [name for name in known if name != word], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _field_names(model: type[BaseModel]) -> set[str]:
    """Every property name anywhere in a model's JSON schema."""
    names: set[str] = set()

    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            names.update(schema.get("properties", {}))
            for value in schema.values():
                walk(value)
        elif isinstance(schema, list):
            for value in schema:
                walk(value)

    walk(model.model_json_schema())
    return names

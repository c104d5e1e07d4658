"""What must not drift unnoticed: the report's JSON schema, and the keys that a spec makes.

After a deliberate change: BITSMITH_UPDATE_GOLDEN=1 pytest tests/schemas/test_golden.py
"""

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from schemas.base import canonical_json, digest_of
from schemas.recipe import StepSpec
from schemas.report import Report
from steps.table import SOURCES, STEPS, step_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
REQUIRED: dict[str, dict[str, Any]] = {
    "model": {"source": "somewhere"},
    "text": {"source": "somewhere.jsonl"},
    "tokenize": {"layout": "stream"},
    "quantize": {"formats": ["int3-g64", "int8-row-asym"]},
    "allocate": {"budget": {"bits_per_weight": 3.25}},
}
SPECS = get_args(get_args(StepSpec)[0])


def compare(name: str, found: Any) -> None:
    path = GOLDEN / name
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if os.environ.get("BITSMITH_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, f"{name} changed; see the head of this file"


def examples() -> dict[str, Any]:
    kinds = {spec.model_fields["step"].annotation: spec for spec in SPECS}
    names = {get_args(kind)[0]: spec for kind, spec in kinds.items()}
    return {name: spec(step=name, **REQUIRED.get(name, {})) for name, spec in names.items()}


def test_report_schema() -> None:
    compare("report.schema.json", Report.model_json_schema())


def test_keys_of_every_step_with_fixed_inputs() -> None:
    """A key is the digest of its document alone: the same on every machine, for every Python."""
    keys = {}
    for name, spec in examples().items():
        if type(spec) in SOURCES:
            continue
        step = step_of(spec)
        document = {
            "step": step.module,
            "spec": spec.model_dump(mode="json"),
            "code": "v1",
            "libraries": dict.fromkeys(step.libraries, "1.0"),
            "inputs": {port: digest_of(port) for port in step.inputs},
        }
        keys[name] = digest_of(document)
    compare("keys.json", keys)


def test_the_table_of_steps_is_complete() -> None:
    assert {type(s) for s in examples().values()} == {s.spec for s in STEPS} | set(SOURCES)
    assert len({s.spec for s in STEPS}) == len(STEPS)


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_the_committed_schema_accepts_a_real_report() -> None:
    import jsonschema
    from reports import example_report

    schema = json.loads((GOLDEN / "report.schema.json").read_text())
    jsonschema.validate(json.loads(example_report().model_dump_json()), schema)

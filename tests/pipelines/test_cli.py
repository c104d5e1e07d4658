"""The command line: instant help, one clear error and exit code 2 for bad input."""

import argparse
import importlib
import inspect
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import COMMANDS, main, parser

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "prefect", "mlflow", "transformers", "pulp", "matplotlib", "fsspec")
LONG = "x" * 300


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipelines.cli import parser\nparser().format_help()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_help_is_there_at_once() -> None:
    """In seconds of the processor, of some runs the fewest: what else the machine does is not counted."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "--help"], stdout=subprocess.DEVNULL, check=True, cwd=ROOT
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


def test_every_command_has_its_function_and_no_other_has() -> None:
    (subparsers,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(subparsers.choices) == set(COMMANDS)
    for module, name in COMMANDS.values():
        assert list(inspect.signature(getattr(importlib.import_module(module), name)).parameters) == ["options"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing.yaml"], "no such recipe"),
        (["run", "demo", "--set", "budget"], "FIELD.PATH=VALUE"),
        (["plan", "demo", "--set", "method=magic"], "'gptq', 'rtn', 'autoround'"),
        (["plan", "demo", "--set", "model.source=/nowhere"], "/nowhere"),
        (["explain", "demo", "nonode"], "no such node"),
        (["plan", "demo", "--set", "formats.²=int4-g64"], "no such list element"),
        (["verify", "folder", "--length", "0"], "16 or more"),
        (["verify", "folder", "--windows", "-1"], "1 or more"),
        (["verify", "folder", "--windows", "many"], "1 or more"),
        (["latency", "demo", "--tokens", "-1"], "1 or more"),
        (["latency", "demo", "--seconds", "nan"], "more than 0"),
        (["latency", "--shapes", "999999999999x64", "--formats", "int4-g64"], "does not fit in memory"),
        (["ui", "--port", "65536"], "0 to 65535"),
        (["sweep", "demo", "--bits", "3", "--random", "99999999999"], "0 to 1000"),
        (["plan", LONG], "too long"),
        (["plan", "demo", "--set", f"model.source={LONG}"], "too long"),
        (["plan", "demo", "--set", f"text.evaluate={LONG}"], "too long"),
        (["plan", "demo", "--set", "model.source=~nobody-here/x"], "~nobody-here/x"),
        (["verify", "~nobody-here/x"], "not a packed folder"),
        (["explain", LONG], "too long"),
        (["verify", LONG], "too long"),
    ],
)
def test_bad_input_is_one_error_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITSMITH_HOME", str(tmp_path))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and says in captured.err and "Traceback" not in captured.err

"""The command line: instant help, one clear error and exit code 2 for bad input."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "prefect", "mlflow", "transformers", "pulp", "matplotlib", "fsspec")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipelines.cli import parser\nparser().format_help()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing.yaml"], "no such recipe"),
        (["run", "demo", "--set", "budget"], "FIELD.PATH=VALUE"),
        (["plan", "demo", "--set", "method=magic"], "'gptq', 'rtn', 'autoround'"),
        (["plan", "demo", "--set", "model.source=/nowhere"], "/nowhere"),
        (["explain", "demo", "nonode"], "no such node"),
    ],
)
def test_bad_input_is_one_error_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITSMITH_HOME", str(tmp_path))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and says in captured.err and "Traceback" not in captured.err

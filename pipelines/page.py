"""The report as one HTML file, drawn by ui/ in a process of its own (`pipelines` and `ui` do not import each other)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from schemas.report import Report

PATIENCE = 120
"""Seconds; drawing takes one."""

_LAST_WORDS = 300


@dataclass
class Page:
    """The HTML file of one build. A report that cannot be drawn is no reason to fail a build: it becomes a note."""

    path: Path
    store: str
    fault: str | None = field(default=None, init=False)

    def draw(self, report: Report) -> Path | None:
        """The file, or None when it could not be drawn; then `fault` says why."""
        self.fault = _draw(report, self.path, self.store)
        return None if self.fault else self.path

    def beside(self, report: Report) -> Report:
        """The report with the file's path, or a note when there is none; drawn now if nobody has asked for it."""
        if self.fault is None and not self.path.exists():
            self.draw(report)
        if self.fault is None:
            return report.model_copy(update={"page": str(self.path)})
        return report.model_copy(update={"notes": (*report.notes, f"no HTML report: {self.fault}")})


def _draw(report: Report, path: Path, store: str) -> str | None:
    """Why there is no file, or None. It gets its name when it is whole."""
    with tempfile.TemporaryDirectory(prefix="bitsmith-report-") as folder:
        source, drawn = Path(folder) / "report.json", Path(folder) / "report.html"
        source.write_text(json.dumps(report.model_dump(mode="json")), "utf-8")
        command = [sys.executable, "-m", "ui.report", str(source), str(drawn), "--store", store]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
            if done.returncode:
                return f"exit code {done.returncode}: {done.stderr.strip()[-_LAST_WORDS:]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            part.write_bytes(drawn.read_bytes())
            part.replace(path)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{type(error).__name__}: {error}"
    return None

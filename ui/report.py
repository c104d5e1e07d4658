"""`python -m ui.report REPORT_JSON OUT_HTML [--store URL]`: a build's report as one HTML file.

The same sections and figures as the build page, without a script and without a single address outside the file, so
that it can be read in MLflow's artifact view, mailed, and printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from schemas.errors import InputError
from schemas.report import Report
from store.open import Store
from ui.render import render, style
from ui.scores import scores_of
from ui.view import BuildView


def report_html(view: BuildView) -> str:
    """The whole file."""
    return render("report.html", view=view, style=style())


def main(arguments: list[str] | None = None) -> int:
    """Write the file; 2 when the report cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m ui.report", description="Write a build's report as one HTML file.")
    parser.add_argument("report", type=Path, metavar="REPORT_JSON")
    parser.add_argument("out", type=Path, metavar="OUT_HTML")
    parser.add_argument("--store", metavar="URL", help="for the score of every unit in every format")
    options = parser.parse_args(arguments)
    try:
        report = Report.model_validate_json(options.report.read_bytes())
        scores = scores_of(Store(options.store), report) if options.store else None
        options.out.write_text(report_html(BuildView(report, scores=scores, store=options.store or "")), "utf-8")
    except (OSError, ValidationError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

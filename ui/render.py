"""The templates: everything is escaped, an unknown name is an error."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ui.figures.block_curves import block_curves
from ui.figures.curve import training_curve
from ui.figures.dag import dag, state_of
from ui.figures.heatmap import heat_map
from ui.figures.intervals import domains, positions, whisker
from ui.figures.scatter import predicted_measured, size_kl
from ui.figures.sensitivity import sensitivity
from ui.words import FILTERS

HERE = Path(__file__).parent
STATIC = HERE / "static"
FIGURES = (
    block_curves,
    dag,
    training_curve,
    heat_map,
    domains,
    positions,
    whisker,
    predicted_measured,
    size_kl,
    sensitivity,
    state_of,
)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Jinja with our filters and figures."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    made.globals.update({figure.__name__: figure for figure in FIGURES})
    return made


def render(template: str, **context: object) -> str:
    """A page."""
    return environment().get_template(template).render(**context)


def style() -> Markup:
    """The style sheet of the figures and sections, for a page that may load nothing."""
    return Markup((STATIC / "base.css").read_text("utf-8"))

"""One HTML file with plots and tables that needs nothing else, not even a network."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr_slfac.errors import SettingError


@dataclass(frozen=True)
class Plot:
    """A plot, as Plotly draws it.

    Parameters
    ----------
    name : str
        Id of its place in the page: letters, digits and ``-``.
    title : str
        Above it; with what a reader should know of it.
    traces : sequence of dict
        As ``Plotly.newPlot`` takes them.
    x_title, y_title : str
        Of the axes, with units.
    layout : mapping
        What else Plotly's layout is to be.
    """

    name: str
    title: str
    traces: Sequence[Mapping[str, Any]]
    x_title: str = ""
    y_title: str = ""
    layout: Mapping[str, Any] = field(default_factory=dict)

    def figure(self) -> dict[str, Any]:
        """Return traces and layout; what is NaN or infinite becomes null."""
        layout: dict[str, Any] = {
            "margin": {"l": 60, "r": 30, "t": 30, "b": 50},
            "legend": {"orientation": "h", "y": -0.25},
            "xaxis": {"title": {"text": self.x_title}, "automargin": True},
            "yaxis": {"title": {"text": self.y_title}, "automargin": True},
        }
        for key, value in self.layout.items():
            both = isinstance(value, Mapping) and key in layout
            layout[key] = {**layout[key], **value} if both else value
        figure: dict[str, Any] = _finite({"data": list(self.traces), "layout": layout})
        return figure


@dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    title : str
        Above it.
    head : sequence of str
        Names of the columns.
    rows : sequence of sequence of object
        Texts and numbers.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Page:
    """A page.

    Parameters
    ----------
    title : str
        Of the page.
    facts : mapping of str to object
        What it is about, a line each.
    parts : sequence of Plot or Table
        In order.
    """

    title: str
    facts: Mapping[str, Any]
    parts: Sequence[Plot | Table]


def write_page(path: Path, page: Page) -> None:
    """Write a page with Plotly in it: about 5 MB, readable offline and on a phone.

    The same page gives the same bytes.

    Parameters
    ----------
    path : Path
        The file.
    page : Page
        What is on it.

    Raises
    ------
    SettingError
        If the ``plotly`` package is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SettingError(
            "a report needs the plotly package; pip install 'flwr-slfac[report]'"
        ) from error
    figures = {p.name: p.figure() for p in page.parts if isinstance(p, Plot)}
    # Nothing in a text may end the script that it stands in.
    data = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")
    title = html.escape(page.title)
    text = "\n".join(
        (
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
            _facts(page.facts),
            *(_part(part) for part in page.parts),
            f'<script type="application/json" id="figures">{data}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{_DRAW}</script></body></html>",
            "",
        )
    )
    path.write_text(text, encoding="utf-8", newline="\n")


_STYLE = """
body { font-family: system-ui, sans-serif; margin: 0 auto; max-width: 70rem;
  padding: 0 1rem 3rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 2rem 0 .3rem; }
.plot { width: 100%; min-height: 26rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
"""
_DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
for (const [name, figure] of Object.entries(figures))
  Plotly.newPlot(name, figure.data, figure.layout,
    {responsive: true, displaylogo: false});
"""


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [[name, value] for name, value in facts.items()]
    return _table((), rows) if rows else ""


def _part(part: Plot | Table) -> str:
    heading = f"<h2>{html.escape(part.title)}</h2>"
    if isinstance(part, Plot):
        return f'{heading}<div class="plot" id="{html.escape(part.name)}"></div>'
    return heading + _table(part.head, part.rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [_row("th", head)] if head else []
    lines += [_row("td", row) for row in rows]
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def _row(tag: str, cells: Sequence[Any]) -> str:
    shown = (f"<{tag}>{html.escape(_shown(cell))}</{tag}>" for cell in cells)
    return f"<tr>{''.join(shown)}</tr>"


def _shown(cell: Any) -> str:
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:.6g}"
    return str(cell)


def _finite(value: Any) -> Any:
    """Return a value with None for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return value

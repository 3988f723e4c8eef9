"""A study as interactive figures, drawn from what `figures.data` computes.

Points are drawn as SVG, not by WebGL: browsers allow a page about sixteen WebGL figures and blank the others. Lists are
handed to Plotly as lists: from arrays it makes a binary form that older readers of the figures, dashboards among them,
do not know. Text is escaped, since Plotly reads a part of HTML in it, and `%{...}` in hover texts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from hpo_reports.analysis.importance import Importance
from hpo_reports.analysis.verdicts import TrialComparison
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import count, number
from hpo_reports.document.markdown import Markdown
from hpo_reports.document.tables import Value
from hpo_reports.figures.data import (
    DrawnCurves,
    Kind,
    Points,
    Slice,
    curves,
    history,
    pareto,
    phi_against_perplexity,
    slices,
)
from hpo_reports.records.study import StudyRecord

HEIGHT_PX = 450
MAX_NAME = 60  # characters of a name on an axis or in a title
LINEAR_UP_TO = 4  # times the smallest: below that a logarithmic axis has hardly a number on it
DIGITS = 6  # significant, of what is drawn

# The colours of Okabe and Ito (2008), told apart by the colour-blind, the blue lighter to be seen on dark pages;
# each kind has a shape of its own as well.
_MARKS: Mapping[Kind, tuple[str, str, int]] = {  # colour, symbol, size; later ones are drawn above earlier ones
    "pruned": ("#999999", "x-thin-open", 7),
    "failed": ("#CC79A7", "hexagram-open", 9),
    "out_of_memory": ("#CC79A7", "square-open", 9),
    "diverged": ("#D55E00", "triangle-up-open", 9),
    "running": ("#56B4E9", "triangle-right", 9),
    "not_compared": ("#2B8CC4", "circle-open", 8),
    "complete": ("#2B8CC4", "circle", 8),
    "baseline": ("#E69F00", "diamond", 12),
    "winner": ("#009E73", "star", 15),
}
_INK = "#808080"  # legible on white (3.9 : 1) and on black (5.3 : 1)
_GRID = "rgba(128, 128, 128, 0.25)"
_CLEAR = "rgba(0, 0, 0, 0)"


def figures(
    record: StudyRecord,
    comparison: TrialComparison,
    t: Catalogue,
    *,
    importance: Importance | None = None,
) -> Mapping[str, go.Figure]:
    """Draw a study.

    Args:
        record: the study.
        comparison: of its complete trials.
        t: titles, axes and legends, in the reader's language.
        importance: of the parameters, if it was computed.

    Returns:
        Figures by name, in the order in which they are to be read; one that would show nothing is left out. A name is
        fit to be an id in HTML.
    """
    drawn: dict[str, go.Figure | None] = {}
    for place in range(len(record.directions)):
        name = "history" if len(record.directions) == 1 else f"history-{place + 1}"
        drawn[name] = _history(history(record, comparison, place), record, place, t)
    drawn["curves"] = _curves(curves(record, comparison), t)
    front = pareto(record, comparison)
    if front is not None:
        drawn["front"] = _front(front, record, t)
    if front is None or not record.is_ours:  # else the front's axes are these
        drawn["phi"] = _phi(phi_against_perplexity(record, comparison), t)
    for place, each in enumerate(slices(record, comparison), 1):
        drawn[f"slice-{place}"] = _slice(each, t)
    if importance is not None:
        drawn["importance"] = _importance(importance, t)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def escaped(text: str, longest: int = MAX_NAME) -> str:
    """Text that Plotly shows as it is: no tags, no entities, no TeX, no substitutions.

    Args:
        text: anything.
        longest: characters, after which it is cut off.
    """
    printable = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    short = printable if len(printable) <= longest else f"{printable[: longest - 1]}…"
    return html.escape(short, quote=False).replace("$", "&#36;").replace("%", "&#37;")


def _history(found: Points, record: StudyRecord, objective: int, t: Catalogue) -> go.Figure | None:
    if not found.points:
        return None
    axis = _objective(found.perplexity, record, objective, t)
    figure = _figure(_title(_text(t, "figure.history"), found, t), _text(t, "figure.trial"), axis)
    if len(found.line) > 1 or (found.line and found.of > 1):
        last = max(float(point.x) for point in found.points)
        steps = [*found.line, (max(last, found.line[-1][0]), found.line[-1][1])]
        figure.add_trace(_line(steps, _text(t, "figure.best_so_far"), shape="hv"))
    _add_points(figure, found, t, f"{axis} %{{y}}")
    return _with_scale(figure, [point.y for point in found.points], found.perplexity)


def _curves(found: DrawnCurves, t: Catalogue) -> go.Figure | None:
    if not found.curves:
        return None
    title = _text(t, "figure.curves")
    if len(found.curves) < found.of:
        title += f" ({_text(t, 'figure.curves_of', drawn=len(found.curves), all=count(found.of))})"
    axis = _text(t, "figure.perplexity") if found.perplexity else _text(t, "figure.reported")
    figure = _figure(title, _text(t, "figure.evaluation"), axis)
    for kind, (colour, _, _) in _MARKS.items():
        lines = [curve for curve in found.curves if curve.kind == kind]
        if not lines:
            continue
        important = kind in ("winner", "baseline")
        x: list[int | None] = []
        y: list[float | None] = []
        numbers: list[int | None] = []
        for curve in lines:  # one trace for all, with gaps between
            x += [*range(1, len(curve.values) + 1), None]
            y += [*map(_short, curve.values), None]
            numbers += [*[curve.number] * len(curve.values), None]
        trial, evaluation = _text(t, "figure.trial"), _text(t, "figure.evaluation")
        hover = f"{trial} %{{customdata}}<br>{evaluation} %{{x}}<br>{axis} %{{y}}<extra></extra>"
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                customdata=numbers,
                mode="lines+markers" if important else "lines",
                name=_text(t, f"kind.{kind}"),
                line=dict(color=colour, width=3 if important else 1, dash="dash" if kind == "baseline" else "solid"),
                opacity=1.0 if important else 0.75,
                hovertemplate=hover,
            )
        )
    values = [value for curve in found.curves for value in curve.values if value is not None]
    return _with_scale(figure, values, found.perplexity)


def _front(found: Points, record: StudyRecord, t: Catalogue) -> go.Figure | None:
    if not found.points:
        return None
    axes = [_objective(found.perplexity and place == 0, record, place, t) for place in (0, 1)]
    figure = _figure(_title(_text(t, "figure.front"), found, t), axes[0], axes[1])
    if found.line:
        figure.add_trace(_line(list(found.line), _text(t, "figure.on_front")))
    _add_points(figure, found, t, f"{axes[0]} %{{x}}<br>{axes[1]} %{{y}}")
    return figure


def _phi(found: Points, t: Catalogue) -> go.Figure | None:
    if not found.points:
        return None
    perplexity, phi = _text(t, "figure.perplexity"), _text(t, "figure.phi")
    figure = _figure(_title(_text(t, "figure.phi_against_perplexity"), found, t), perplexity, phi)
    _add_points(figure, found, t, f"{perplexity} %{{x}}<br>{phi} %{{y}}")
    return figure


def _slice(found: Slice, t: Catalogue) -> go.Figure:
    name = escaped(found.parameter)
    title = _text(t, "figure.slice", parameter=Markdown(name))  # escaped for Plotly, not for Markdown
    if len(found.categories) < found.categories_of:
        title += f" ({_text(t, 'figure.categories_of', drawn=len(found.categories), all=count(found.categories_of))})"
    axis = _text(t, "figure.perplexity") if found.points.perplexity else _text(t, "figure.objective")
    figure = _figure(_title(title, found.points, t), name, axis)
    _add_points(figure, found.points, t, f"{name} %{{x}}<br>{axis} %{{y}}")
    if found.categories:
        order = [escaped(text) for text in found.categories]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    elif found.log:
        _log_axis(figure, "xaxis", [float(point.x) for point in found.points.points])
    return _with_scale(figure, [point.y for point in found.points.points], found.points.perplexity)


def _importance(found: Importance, t: Catalogue) -> go.Figure:
    shares = sorted(found.shares.items(), key=lambda share: share[1].value)
    figure = _figure(
        _text(t, "figure.importance", evaluator=Markdown(escaped(found.evaluator))), _text(t, "figure.share"), ""
    )
    figure.add_trace(
        go.Bar(
            x=[_short(each.value) for _, each in shares],
            y=[escaped(name) for name, _ in shares],
            error_x={
                "array": [_short(max(each.high - each.value, 0)) for _, each in shares],
                "arrayminus": [_short(max(each.value - each.low, 0)) for _, each in shares],
            },
            orientation="h",
            marker_color=_MARKS["complete"][0],
            hovertemplate="%{y} %{x}<extra></extra>",
        )
    )
    return figure.update_layout(showlegend=False, hovermode="closest").update_yaxes(type="category")


def _figure(title: str, x: str, y: str) -> go.Figure:
    figure = go.Figure(layout=go.Layout(template=_TEMPLATE, height=HEIGHT_PX))
    return figure.update_layout(title_text=title, xaxis_title_text=x, yaxis_title_text=y)


def _add_points(figure: go.Figure, found: Points, t: Catalogue, hover: str) -> None:
    trial = _text(t, "figure.trial")
    for kind, (colour, symbol, size) in _MARKS.items():
        name = _text(t, f"kind.{kind}")
        points = [point for point in found.points if point.kind == kind]
        if points:
            figure.add_trace(
                go.Scatter(
                    x=[escaped(p.x) if isinstance(p.x, str) else _short(p.x) for p in points],
                    y=[_short(point.y) for point in points],
                    customdata=[point.number for point in points],
                    mode="markers",
                    name=name,
                    marker=dict(
                        color=colour, symbol=symbol, size=size, line=dict(width=1.5 if "open" in symbol else 0)
                    ),
                    hovertemplate=f"{trial} %{{customdata}}<br>{hover}<extra>{name}</extra>",
                )
            )


def _line(places: Sequence[tuple[float, float]], name: str, shape: str = "linear") -> go.Scatter:
    return go.Scatter(
        x=[_short(x) for x, _ in places],
        y=[_short(y) for _, y in places],
        mode="lines",
        name=name,
        line=dict(color=_MARKS["winner"][0], width=2, shape=shape),
        hoverinfo="skip",
    )


def _text(t: Catalogue, key: str, **values: Value) -> str:
    """A message as a plain string, which is all that Plotly's writers of JSON accept."""
    return str(t(key, **values))


def _title(title: str, found: Points, t: Catalogue) -> str:
    """The title, and below it what is left out."""
    notes = []
    if len(found.points) < found.of:
        notes.append(_text(t, "figure.points_of", drawn=count(len(found.points)), all=count(found.of)))
    if found.without:
        notes.append(_text(t, "figure.without", count=count(found.without)))
    return f"{title}<br><sub>{'; '.join(notes)}</sub>" if notes else title


def _objective(perplexity: bool, record: StudyRecord, place: int, t: Catalogue) -> str:
    """What an axis of objective values is called."""
    if perplexity:
        return _text(t, "figure.perplexity")
    if record.is_ours and place == 1:
        return _text(t, "figure.phi")
    objective = _text(t, "figure.objective")
    return objective if len(record.directions) == 1 else f"{objective} {place + 1}"


def _with_scale(figure: go.Figure, values: Iterable[float], perplexity: bool) -> go.Figure:
    """Perplexities are compared by their ratios: their axis is logarithmic where they differ by much."""
    positive = [value for value in values if value > 0]
    if perplexity and positive and max(positive) > LINEAR_UP_TO * min(positive):
        _log_axis(figure, "yaxis", positive)
    return figure


def _log_axis(figure: go.Figure, axis: str, values: Sequence[float]) -> None:
    """A logarithmic axis with whole numbers on it, where Plotly would print a lone 2 or 5."""
    low, high = math.log10(min(values)), math.log10(max(values))
    decades = range(math.floor(low) - 1, math.ceil(high) + 2)
    if high - low > 5:
        figure.update_layout({axis: dict(type="log", exponentformat="power", dtick=max(1, round((high - low) / 6)))})
        return
    span = high - low
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if span < 0.8 else (1, 2, 5) if span < 2.5 else (1, 3) if span < 4 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    figure.update_layout({axis: dict(type="log", tickvals=ticks, ticktext=[number(_short(tick)) for tick in ticks])})


def _short(value: float | None) -> float | None:
    """A number with as many digits as a figure can show."""
    return value if value is None or isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def _template() -> go.layout.Template:
    """How all figures look: no background of their own, so that they are read on a light page and on a dark one."""
    axis: dict[str, Any] = dict(
        gridcolor=_GRID, linecolor=_INK, zeroline=False, showline=True, ticks="outside", automargin=True
    )
    return go.layout.Template(
        layout=go.Layout(
            paper_bgcolor=_CLEAR,
            plot_bgcolor=_CLEAR,
            font=dict(color=_INK, size=13),
            title=dict(font=dict(size=16), x=0, xanchor="left", xref="paper"),
            legend=dict(orientation="h", y=-0.22, yanchor="top", x=0, xanchor="left"),
            margin=dict(l=60, r=20, t=70, b=60),
            xaxis=axis,
            yaxis=axis,
            hovermode="closest",
            bargap=0.3,
        )
    )


_TEMPLATE = _template()

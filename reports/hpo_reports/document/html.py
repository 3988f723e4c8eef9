"""A document as one HTML file: the same Markdown rendered, charts as interactive figures, nothing fetched.

Everything runs from inside the file: a Content-Security-Policy forbids all else, and admits scripts by their hashes.
What a user gave is text on its way through Markdown, in which HTML is off, and through JSON, in which `<` is written
`\\u003c`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

import jinja2
import plotly.graph_objects as go
import plotly.offline
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markupsafe import Markup

from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.layout import Chart, Document, Section

_PERCENT = re.compile(r"(?<=\d) %")  # stays on the line of its number
_UNSAFE_IN_SCRIPT = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A section as HTML."""

    anchor: str
    title: Markup | None
    content: Markup


def page_of(document: Document, figures: Mapping[str, go.Figure], t: Catalogue) -> str:
    """Write a document as one self-contained HTML file.

    Args:
        document: what to show.
        figures: by the names that its charts have; a chart without one is left out, those without a chart come last.
        t: the language of the page's own words.
    """
    script = _asset("figures.js")
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            language=t.language,
            title=Markup(_inline(document.title)).striptags(),
            heading=Markup(_inline(document.title)),
            parts=list(_parts(document, figures)),
            figures={name: Markup(_script_json(figure)) for name, figure in figures.items()},
            style=Markup(_asset("page.css")),
            plotly=Markup(_plotly()),
            script=Markup(script),
            scripts=Markup(" ".join([_hash(_plotly()), _hash(script)]) if figures else "'none'"),
            contents=t("html.contents"),
            no_script=t("html.no_script"),
        )
    )


def _parts(document: Document, figures: Mapping[str, go.Figure]) -> Iterator[_Part]:
    placed = {block.figure for section in document.sections for block in section.blocks if isinstance(block, Chart)}
    for place, section in enumerate(document.sections):
        content = "".join(_blocks(section, figures))
        if not content:
            continue
        title = None if section.title is None else Markup(_inline(section.title))
        yield _Part(anchor=f"section-{place}", title=title, content=Markup(content))
    rest = [name for name in figures if name not in placed]
    if rest:
        yield _Part(anchor="figures", title=None, content=Markup("".join(map(_figure, rest))))


def _blocks(section: Section, figures: Mapping[str, go.Figure]) -> Iterator[str]:
    for block in section.blocks:
        if not isinstance(block, Chart):
            yield _PERCENT.sub("\u00a0%", _markdown().render(block))
        elif block.figure in figures:
            yield _figure(block.figure)


def _figure(name: str) -> str:
    return str(Markup('<div class="figure" data-figure="{}"></div>\n').format(name))


def _inline(text: str) -> str:
    return str(_markdown().renderInline(text))


@functools.cache
def _markdown() -> MarkdownIt:
    """CommonMark with GitHub's tables, each in a box that scrolls; HTML in it is text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _table_open(_: RendererHTML, *__: object) -> str:
    return '<div class="wide" tabindex="0"><table>\n'


def _table_close(_: RendererHTML, *__: object) -> str:
    return "</table></div>\n"


def _script_json(figure: go.Figure) -> str:
    return str(figure.to_json()).translate(_UNSAFE_IN_SCRIPT)


def _hash(script: str) -> str:
    """Of an inline script, as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@functools.cache
def _plotly() -> str:
    return str(plotly.offline.get_plotlyjs())


@functools.cache
def _asset(name: str) -> str:
    return (files("hpo_reports.document") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hpo_reports.document"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )

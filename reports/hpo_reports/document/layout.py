"""The parts of a document: sections of blocks, each a piece of Markdown or a chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hpo_reports.document.markdown import Markdown


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture: a Mermaid diagram in Markdown, an interactive figure in HTML."""

    figure: str  # its name in `hpo_reports.figures.draw`; HTML leaves out what the study has no figure for
    mermaid: str | None = None  # None: HTML alone shows it
    caption: Markdown | None = None  # under the diagram: what the figure's own legend tells


Block = Markdown | Chart


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: Markdown | None  # None: follows the document's own title
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: Markdown
    sections: tuple[Section, ...]


def bullets(lines: Iterable[str]) -> Markdown:
    """A list, an item per line."""
    return Markdown("\n".join(f"- {line}" for line in lines))


def numbered(lines: Iterable[str]) -> Markdown:
    """A numbered list."""
    return Markdown("\n".join(f"{place}. {line}" for place, line in enumerate(lines, 1)))


def fenced(language: str, text: str) -> Markdown:
    """A block to copy; no line of the text may begin with a fence."""
    return Markdown(f"```{language}\n{text}\n```")


def markdown_of(document: Document, *, diagrams: bool = True) -> str:
    """The document as GitHub Markdown; charts as Mermaid, or left out where nothing draws them."""
    return "\n\n".join(_pieces(document, diagrams)) + "\n"


def _pieces(document: Document, diagrams: bool) -> Iterator[str]:
    yield f"# {document.title}"
    for section in document.sections:
        blocks = [piece for block in section.blocks for piece in _block(block, diagrams)]
        if blocks and section.title is not None:
            yield f"## {section.title}"
        yield from blocks


def _block(block: Block, diagrams: bool) -> Iterator[str]:
    if isinstance(block, Markdown):
        yield block
    elif diagrams and block.mermaid is not None:
        yield fenced("mermaid", block.mermaid)
        if block.caption is not None:
            yield block.caption

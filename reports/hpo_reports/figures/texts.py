"""What is written on the figures; another language is another object of this kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from hpo_reports.document.catalogue import Catalogue
from hpo_reports.figures.data import Kind


@dataclass(frozen=True, kw_only=True)
class FigureTexts:
    """Titles, axes and legends. What stands in braces is filled in."""

    history: str = "What each trial reached; its last value, where it ended early"
    best_so_far: str = "best so far"
    curves: str = "Learning curves"
    curves_of: str = "the {drawn} most telling of {all}"
    front: str = "Both objectives, and the front"
    on_front: str = "front"
    phi_against_perplexity: str = "Φ against perplexity"
    slice: str = "Complete trials by {parameter}"
    categories_of: str = "the {drawn} most frequent of {all} values"
    importance: str = "Importance of the parameters ({evaluator})"
    share: str = "share of what tells the best tenth apart"
    trial: str = "trial"
    evaluation: str = "evaluation"
    perplexity: str = "validation perplexity per token"
    phi: str = "Φ of the validation text"
    objective: str = "objective value"
    reported: str = "reported value"
    points_of: str = "{drawn} of {all} trials drawn, the best among them"
    without: str = "without {count} that have no value"
    kinds: Mapping[Kind, str] = field(
        default_factory=lambda: {
            "winner": "best",
            "baseline": "baseline",
            "complete": "complete",
            "not_compared": "complete, not compared",
            "pruned": "pruned",
            "diverged": "diverged",
            "out_of_memory": "out of memory",
            "failed": "failed",
            "running": "running",
        }
    )


ENGLISH = FigureTexts()


def figure_texts(say: Catalogue) -> FigureTexts:
    """What is written on the figures, in the catalogue's language; places stay open until a figure is drawn."""
    names = [each.name for each in fields(FigureTexts) if each.name != "kinds"]
    kinds = {kind: say(f"kind.{kind}") for kind in ENGLISH.kinds}
    return FigureTexts(**{name: str(say.messages[f"figure.{name}"]) for name in names}, kinds=kinds)

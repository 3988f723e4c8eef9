"""What was asked, of what, with what: the lines under a document's title."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import count, moment
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown
from hpo_reports.records.attributes import whole
from hpo_reports.records.study import SearchRecord, StudyRecord, TrialRecord
from hpo_reports.sections.words import trials_named


def head(findings: Findings, say: Catalogue) -> Section:
    """Date, question, method, text, machine; what is suspicious comes before all."""
    suspicious = [trial for trial in findings.record.trials if trial.suspicious]
    lines = bullets(_lines(findings, say))
    return Section(title=None, blocks=(*((_warning(suspicious, say),) if suspicious else ()), lines))


def _warning(suspicious: list[TrialRecord], say: Catalogue) -> Markdown:
    trials = trials_named(suspicious, say)
    return Markdown(f"> {say('head.suspicious', sign=Markdown(say.sign('warning')), trials=trials)}")


def _lines(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    study = findings.record
    if study.log is not None:
        yield say("log.origin", file=study.log.file, digest=study.log.digest, moment=moment(study.log.imported_at))
        yield say("log.objective")
        return
    yield _date(study, say)
    yield say("head.question", text=study.description)
    yield _objective(findings, say)
    yield say("head.sampler", text=_sampler(study, say))
    yield say("head.pruner", text=_pruner(study, say))
    yield _planned(study, say)
    for searched in study.search:
        yield say("head.searched", name=searched.name, range=_range(searched, say))
    seeds = distinct((trial for trial in study.trials if trial.is_ours), "seed")
    if seeds:
        yield say("head.seed" if len(seeds) == 1 else "head.seeds", seeds=say.listed(seeds))
    yield from _text(study, say)
    yield say("head.hardware", hardware=study.hardware, profile=study.profile)
    yield say("head.versions", versions=_versions(study, say))


def _date(study: StudyRecord, say: Catalogue) -> Markdown:
    if study.last_run is None:
        return say("head.date", created=moment(study.created_at))
    return say("head.dates", created=moment(study.created_at), last=moment(study.last_run))


def _objective(findings: Findings, say: Catalogue) -> Markdown:
    if findings.record.is_ours:
        return say("head.objective_loss" if findings.single else "head.objectives_loss_phi")
    names = [say(f"direction.{direction}") for direction in findings.record.directions]
    return say("head.objective", text=say.listed(names, "and"))


def _sampler(study: StudyRecord, say: Catalogue) -> Markdown:
    sampler = study.sampler
    if sampler.get("kind") == "tpe":
        return say("sampler.tpe", startup=sampler.get("startup_trials"))
    return say("sampler.grid") if sampler.get("kind") == "grid" else say("sampler.other", kind=sampler.get("kind"))


def _pruner(study: StudyRecord, say: Catalogue) -> Markdown:
    pruner = study.pruner
    facts = {name: pruner.get(name) for name in ("min_resource", "reduction_factor", "n_min_trials", "percentile")}
    match pruner.get("kind"):
        case "successive_halving":
            return say("pruner.successive_halving", **facts)
        case "median":
            return say("pruner.median", **facts)
        case "percentile":
            return say("pruner.percentile", **facts)
        case "none":
            return say("pruner.none")
        case kind:
            return say("pruner.other", kind=kind)


def _planned(study: StudyRecord, say: Catalogue) -> Markdown:
    runs = [trial for trial in study.trials if trial.is_ours]
    parts = [say("head.planned", n=study.planned_trials)]
    if budgets := distinct(runs, "budget_tokens"):
        parts.append(say("head.planned_tokens", tokens=say.listed(map(count, budgets), "or")))
    if evaluations := distinct(runs, "evaluations"):
        parts.append(say("head.planned_evaluations", evaluations=say.listed(evaluations, "or")))
    return Markdown("".join(parts))


def _range(searched: SearchRecord, say: Catalogue) -> Markdown:
    if searched.choices:
        return say("range.choices", choices=say.listed(searched.choices))
    steps = say("range.steps", step=searched.step) if searched.step is not None else ""
    log = say("range.log") if searched.log else ""
    return Markdown(f"{say('range.between', low=searched.low, high=searched.high)}{log}{steps}")


def _text(study: StudyRecord, say: Catalogue) -> Iterator[Markdown]:
    corpus, tokenizer = study.corpus, study.tokenizer
    yield say(
        "head.corpus",
        name=corpus.name if corpus.origin is None else say("head.corpus_from", name=corpus.name, origin=corpus.origin),
        train=count(corpus.train_tokens),
        valid=count(corpus.valid_tokens),
        test=count(corpus.test_tokens),
        digest=corpus.digest,
    )
    yield say("head.tokenizer", kind=tokenizer.kind, vocabulary=count(tokenizer.vocabulary), digest=tokenizer.digest)


def _versions(study: StudyRecord, say: Catalogue) -> Markdown | None:
    pairs = [say("head.version", name=name, version=version) for name, version in study.versions.items()]
    return say.listed(pairs) if pairs else None


def distinct(trials: Iterable[TrialRecord], parameter: str) -> list[int]:
    """The different whole numbers that a parameter has in these trials."""
    values = {whole(trial.parameters, parameter) for trial in trials}
    return sorted(value for value in values if value is not None)

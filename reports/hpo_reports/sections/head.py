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
from hpo_reports.sections.phrases import describe_trials


def head(findings: Findings, t: Catalogue) -> Section:
    """Date, question, method, text, machine; implausibly low perplexities come before all."""
    suspicious = [trial for trial in findings.record.trials if trial.suspicious]
    lines = bullets(_lines(findings, t))
    return Section(title=None, blocks=(*((_warning(suspicious, t),) if suspicious else ()), lines))


def _warning(suspicious: list[TrialRecord], t: Catalogue) -> Markdown:
    trials = describe_trials(suspicious, t)
    return Markdown(f"> {t('head.suspicious', sign=Markdown(t.sign('warning')), trials=trials)}")


def _lines(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    study = findings.record
    if study.log is not None:
        yield t("log.origin", file=study.log.file, digest=study.log.digest, moment=moment(study.log.imported_at))
        yield t("log.objective")
        return
    yield _date(study, t)
    yield t("head.question", text=study.description)
    yield _objective(findings, t)
    yield t("head.sampler", text=_sampler(study, t))
    yield t("head.pruner", text=_pruner(study, t))
    yield _planned(study, t)
    for searched in study.search:
        yield t("head.searched", name=searched.name, range=_range(searched, t))
    seeds = distinct((trial for trial in study.trials if trial.is_ours), "seed")
    if seeds:
        yield t("head.seed" if len(seeds) == 1 else "head.seeds", seeds=t.listed(seeds))
    yield from _text(study, t)
    yield t("head.hardware", hardware=study.hardware, profile=study.profile)
    yield t("head.versions", versions=_versions(study, t))


def _date(study: StudyRecord, t: Catalogue) -> Markdown:
    if study.last_run is None:
        return t("head.date", created=moment(study.created_at))
    return t("head.dates", created=moment(study.created_at), last=moment(study.last_run))


def _objective(findings: Findings, t: Catalogue) -> Markdown:
    if findings.record.is_ours:
        return t("head.objective_loss" if findings.single else "head.objectives_loss_phi")
    names = [t(f"direction.{direction}") for direction in findings.record.directions]
    return t("head.objective", text=t.listed(names, "and"))


def _sampler(study: StudyRecord, t: Catalogue) -> Markdown:
    sampler = study.sampler
    if sampler.get("kind") == "tpe":
        return t("sampler.tpe", startup=sampler.get("startup_trials"))
    return t("sampler.grid") if sampler.get("kind") == "grid" else t("sampler.other", kind=sampler.get("kind"))


def _pruner(study: StudyRecord, t: Catalogue) -> Markdown:
    pruner = study.pruner
    facts = {name: pruner.get(name) for name in ("min_resource", "reduction_factor", "n_min_trials", "percentile")}
    match pruner.get("kind"):
        case "successive_halving":
            return t("pruner.successive_halving", **facts)
        case "median":
            return t("pruner.median", **facts)
        case "percentile":
            return t("pruner.percentile", **facts)
        case "none":
            return t("pruner.none")
        case kind:
            return t("pruner.other", kind=kind)


def _planned(study: StudyRecord, t: Catalogue) -> Markdown:
    runs = [trial for trial in study.trials if trial.is_ours]
    parts = [t("head.planned", n=study.planned_trials)]
    if budgets := distinct(runs, "budget_tokens"):
        parts.append(t("head.planned_tokens", tokens=t.listed(map(count, budgets), "or")))
    if evaluations := distinct(runs, "evaluations"):
        parts.append(t("head.planned_evaluations", evaluations=t.listed(evaluations, "or")))
    return Markdown("".join(parts))


def _range(searched: SearchRecord, t: Catalogue) -> Markdown:
    if searched.choices:
        return t("range.choices", choices=t.listed(searched.choices))
    steps = t("range.steps", step=searched.step) if searched.step is not None else ""
    log = t("range.log") if searched.log else ""
    return Markdown(f"{t('range.between', low=searched.low, high=searched.high)}{log}{steps}")


def _text(study: StudyRecord, t: Catalogue) -> Iterator[Markdown]:
    corpus, tokenizer = study.corpus, study.tokenizer
    yield t(
        "head.corpus",
        name=corpus.name if corpus.origin is None else t("head.corpus_from", name=corpus.name, origin=corpus.origin),
        train=count(corpus.train_tokens),
        valid=count(corpus.valid_tokens),
        test=count(corpus.test_tokens),
        digest=corpus.digest,
    )
    yield t("head.tokenizer", kind=tokenizer.kind, vocabulary=count(tokenizer.vocabulary), digest=tokenizer.digest)


def _versions(study: StudyRecord, t: Catalogue) -> Markdown | None:
    pairs = [t("head.version", name=name, version=version) for name, version in study.versions.items()]
    return t.listed(pairs) if pairs else None


def distinct(trials: Iterable[TrialRecord], parameter: str) -> list[int]:
    """The different whole numbers that a parameter has in these trials."""
    values = {whole(trial.parameters, parameter) for trial in trials}
    return sorted(value for value in values if value is not None)

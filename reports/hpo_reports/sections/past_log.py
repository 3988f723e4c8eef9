"""Of an imported table: what its figures cannot carry, each point following from what the table says or leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import number, percent
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown
from hpo_reports.projection.horizon import LONG_RUN_EPOCHS
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.head import distinct
from hpo_reports.sections.phrases import describe_trials


def past_log(findings: Findings, t: Catalogue) -> Section | None:
    """Why no verdict is drawn from a table of past experiments; none for a study that was run here."""
    if findings.record.log is None:
        return None
    trials = [trial for trial in findings.record.trials if trial.is_imported]
    lines = [*_networks(trials, t), *_evidence(findings, trials, t), *_terms(findings, trials, t)]
    return Section(title=t("log.title"), blocks=(bullets(lines),))


def _networks(trials: Sequence[TrialRecord], t: Catalogue) -> Iterator[Markdown]:
    leaky = [trial for trial in trials if trial.causal is False]
    unknown = [trial for trial in trials if trial.causal is None]
    if leaky:
        yield t("log.not_causal", trials=describe_trials(leaky, t))
    if unknown:
        yield t("log.causal_unknown", trials=describe_trials(unknown, t))
    untold = [trial for trial in trials if not _has_budget(trial)]
    if untold:
        yield t("log.budget_unknown", trials=describe_trials(untold, t))


def _evidence(findings: Findings, trials: Sequence[TrialRecord], t: Catalogue) -> Iterator[Markdown]:
    """What one run of each configuration is worth."""
    seeds = distinct(trials, "seed")
    repeats = _repeats(trials)
    known = t("log.seeds_given", seeds=t.listed(seeds)) if seeds else t("log.seed_unknown")
    limit = percent(findings.comparison.min_detectable_percent)
    if repeats:
        yield t("log.some_repeated", trials=describe_trials(repeats, t), seeds=known, limit=limit, n=len(trials))
    else:
        yield t("log.one_run", seeds=known, limit=limit, n=len(trials))
    if max((len(trial.curve) for trial in trials), default=0) < 2:
        epochs = max((trial.measured.epoch for trial in trials if trial.measured.epoch is not None), default=None)
        yield t("log.one_point", epochs=number(epochs), horizon=LONG_RUN_EPOCHS)


def _terms(findings: Findings, trials: Sequence[TrialRecord], t: Catalogue) -> Iterator[Markdown]:
    """On which terms the runs do not compare."""
    sizes = distinct(trials, "batch_size")
    if len(sizes) > 1 and sizes[0] > 0:
        small, large = sizes[0], sizes[-1]
        yield t("log.updates", small=small, large=large, factor=number(large / small))
    devices = sorted({trial.device for trial in trials if trial.device is not None})
    if len(devices) > 1:
        yield t("log.machines", devices=t.listed(devices, "and"))
    confounded = [trial for trial in trials if _changes(trial, findings.comparison.baseline) > 1]
    if confounded:
        yield t("log.confounded", trials=describe_trials(confounded, t))
    if len({trial.parameters.get("lambda_phi") for trial in trials}) > 1:
        yield t("log.delta_phi")
    above = [trial for trial in trials if (trial.measured.train_ppl or 0.0) > (trial.measured.val_ppl or 0.0)]
    if above:
        yield t("log.train_above_val", trials=describe_trials(above, t))
    if findings.record.corpus.digest is None:
        yield t("log.text_unknown")


def _has_budget(trial: TrialRecord) -> bool:
    return any(each is not None for each in (trial.budget_tokens, trial.measured.tokens, trial.measured.epoch))


def _repeats(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials whose configuration, the seed aside, an earlier one has as well."""
    seen: set[str] = set()
    repeats = []
    for trial in trials:
        configuration = repr(sorted((name, value) for name, value in trial.parameters.items() if name != "seed"))
        repeats += [trial] if configuration in seen else []
        seen.add(configuration)
    return repeats


def _changes(trial: TrialRecord, baseline: TrialRecord | None) -> int:
    """Parameters in which a trial differs from the baseline."""
    if baseline is None:
        return 0
    names = {*trial.parameters, *baseline.parameters}
    return sum(trial.parameters.get(name) != baseline.parameters.get(name) for name in names)

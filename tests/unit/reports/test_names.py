"""Stored names never change: studies of earlier versions have them."""

from hpo_reports.records import names


def test_stored_names_are_those_of_every_version():
    declared = {name: value for name, value in vars(names).items() if name.isupper()}
    assert declared == {
        "PREFIX": "hpo:",
        "STUDY_RECORD": "hpo:study",
        "STUDY_LAST_RUN": "hpo:last_run",
        "STUDY_TABLE": "hpo:log",
        "STUDY_TEST_EVALUATIONS": "hpo:test_split",
        "STUDY_LONG_RUN": "hpo:long_run:",
        "STUDY_PUBLISHED": "hpo:published",
        "STUDY_COPYING": "hpo:copying",
        "TRIAL_SLOT": "hpo:slot",
        "TRIAL_ROLE": "hpo:role",
        "TRIAL_CANDIDATE": "hpo:candidate",
        "TRIAL_RUN": "hpo:run",
        "TRIAL_HISTORY": "hpo:history",
        "TRIAL_OUTCOME": "hpo:outcome",
        "TRIAL_REASON": "hpo:reason",
        "TRIAL_SUSPICIOUS": "hpo:suspicious",
        "TRIAL_CONTINUED": "hpo:continued",
        "TRIAL_REPEATED": "hpo:repeated",
        "TRIAL_MACHINE": "hpo:machine",
        "TRIAL_IMPORTED": "hpo:imported",
        "TRIAL_CAUSAL": "hpo:causal",
        "TRIAL_LABELS": "hpo:labels",
        "FINALISTS_SUFFIX": "--finalists",
    }

"""The names under which facts are stored with studies and trials, and what is stored there.

Each is declared here once; what writes it and what reads it import it. All but the suffix are attributes of Optuna's
studies and trials and hold JSON: user attributes, except `hpo:published`, which is a system attribute. The keys of
Optuna's own attributes are in `hpo.database.optuna_private`. A stored name never changes: studies of earlier versions
have it.
"""

from __future__ import annotations

PREFIX = "hpo:"  # of every name below that is an attribute: what has none of them was made by another program

# Of a study.

STUDY_RECORD = "hpo:study"  # object: what the study was made from (`SweepRecord`); written when it is made or revised
STUDY_LAST_RUN = "hpo:last_run"  # number, seconds since 1970: when `hpo run` last worked on it; written by the launcher
STUDY_TABLE = "hpo:log"  # object: file, digest and moment of an imported table; written by `hpo import-log`
STUDY_TEST_EVALUATIONS = "hpo:test_split"  # list of objects: a companion's test evaluations, in nats; by the search
STUDY_LONG_RUN = "hpo:long_run:"  # begins the names of objects, one for each long run; written by `hpo train`
STUDY_PUBLISHED = "hpo:published"  # object: the published version of notes and figures; written by what publishes them
STUDY_COPYING = "hpo:copying"  # text: the process that copies the study, empty once all is there; written by the copier

# Of a trial.

TRIAL_SLOT = "hpo:slot"  # whole number from 0: its slot; written when the trial is made
TRIAL_ROLE = "hpo:role"  # text: its role, `known` for an enqueued one; written when the trial is made
TRIAL_CANDIDATE = "hpo:candidate"  # whole number: of a replicate, its candidate's number in the search; as above
TRIAL_RUN = "hpo:run"  # object: every value of its run; written by the worker at its end
TRIAL_HISTORY = "hpo:history"  # list of objects (`Evaluation`), losses in nats per token; written by the worker
TRIAL_OUTCOME = "hpo:outcome"  # text: how it ended, finer than Optuna's state; written by the worker at its end
TRIAL_REASON = "hpo:reason"  # text: why it ended; written by the worker at its end
TRIAL_SUSPICIOUS = "hpo:suspicious"  # truth value: its perplexity is implausibly low; written by the worker at its end
TRIAL_CONTINUED = "hpo:continued"  # whole number: times that it went on after an interruption; written by the worker
TRIAL_REPEATED = "hpo:repeated"  # whole number: evaluations made again for want of a checkpoint; written by the worker
TRIAL_MACHINE = "hpo:machine"  # object: host, device and memory in bytes; written by the worker at its end
TRIAL_IMPORTED = "hpo:imported"  # truth value: it is a row of an imported table; written by `hpo import-log`
TRIAL_CAUSAL = "hpo:causal"  # truth value or null: of an imported one, whether its network is causal; as above
TRIAL_LABELS = "hpo:labels"  # object of texts: further columns of an imported row; as above

FINALISTS_SUFFIX = "--finalists"  # ends the name of a companion study, and of no other

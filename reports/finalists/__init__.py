"""The finalists of a search: its best configurations run again under fresh seeds, and what that says of them.

A search compares single runs, whose differences may be luck. Its companion study, `NAME--finalists`, holds the best
configurations and the baseline under the same fresh seeds: the only runs from which a verdict follows.

    record = read_finalists(study)      # records.py: what the companion study holds
    judgement = judge(record)           # judging.py: verdicts, winner, tied set, the study's own seed noise
"""

from reports.finalists.judging import CandidateJudgement, Judgement, SeedNoise, Standing, judge, percent_of, seed_noise
from reports.finalists.records import (
    SUFFIX,
    Candidate,
    FinalistsRecord,
    HeldOutEvaluation,
    HeldOutScore,
    Replicate,
    State,
    read_finalists,
)

__all__ = [
    "SUFFIX",
    "Candidate",
    "CandidateJudgement",
    "FinalistsRecord",
    "HeldOutEvaluation",
    "HeldOutScore",
    "Judgement",
    "Replicate",
    "SeedNoise",
    "Standing",
    "State",
    "judge",
    "percent_of",
    "read_finalists",
    "seed_noise",
]

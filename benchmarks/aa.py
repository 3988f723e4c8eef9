"""A/A test: how often a report declares a difference where there is none, and how often it finds one that is there.

python benchmarks/aa.py                        # simulated studies: a minute
python benchmarks/aa.py --real --home FOLDER   # and ten real ones of equal candidates: six CPU-minutes

Simulated: a search of nine complete trials, its best again beside the baseline under fresh seeds, judged as a report
judges them. All runs under one seed share a part of its luck; each has another of its own. Real: small networks of one
configuration, each run under a seed of its own, dealt out as if they were candidates; the same command goes on with
them. Asked: a difference declared in at most 5 % of 200 simulated and of 10 real studies.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from results import FOLDER, keep

from hpo_model.config import Scalar, TokenizerChoice, build_run
from hpo_model.data.corpus import Corpus, load_corpus
from hpo_model.data.tokens import TokenizedCorpus, tokenize_corpus
from hpo_model.training.loop import train
from hpo_reports.analysis.judging import FinalistsJudgement, judge
from hpo_reports.records.finalists import CandidateRecord, FinalistsRecord, ReplicateRecord
from hpo_reports.records.names import FINALISTS_SUFFIX

NOISE = 0.058  # standard deviation of a loss by its seed, as measured on nano (docs/decisions.md, 2026-11-21)
SHARED = 0.5  # share of its variance that all configurations have in common under one seed
SCREENED = 9  # complete trials of a pruned search of forty
DESIGNS = {"GPU": (3, 7), "CPU": (1, 6)}  # candidates beside the baseline, seeds: the defaults of study files
ADVANTAGES = (0.0, 0.03, 0.06, 0.12)  # in nats: of a perplexity 3, 6 and 13 %
REAL_RUN: dict[str, Scalar] = dict(
    preset="nano", width=64, sequence_length=64, budget_tokens=24_000, evaluations=2, evaluation_tokens=2048
)

Losses = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What judging many studies came to."""

    studies: int
    different: int  # studies in which a candidate was declared better or worse than the baseline
    best_found: int  # in which the best configuration was declared better
    best_won: int  # in which the winner was the best configuration, or as good
    covered: float | None  # share of the 95 % intervals that hold the true difference


# ----------------------------------------------------------------------------------------------------------- simulated


def simulate(studies: int, advantage: float, candidates: int, seeds: int, shared: float, seed: int = 1) -> Findings:
    """Judge studies whose trial 1 is better than the others by so many nats, and whose other trials are all equal."""
    random = np.random.default_rng(seed)
    own, common = NOISE * (1 - shared) ** 0.5, NOISE * shared**0.5
    truth = np.where(np.arange(SCREENED) == 1, -advantage, 0.0)
    judged = []
    for _ in range(studies):
        single = truth + random.normal(0.0, own, SCREENED)
        chosen = [0, *(1 + np.argsort(single[1:])[:candidates]).tolist()]  # trial 0 is the baseline
        luck = random.normal(0.0, common, seeds) + random.normal(0.0, own, (len(chosen), seeds))
        judged.append(judge(record_of(chosen, single, truth[chosen][:, None] + luck)))
    return find(judged, truth)


def record_of(chosen: Sequence[int], single: Losses, losses_CS: Losses) -> FinalistsRecord:
    """Finalists as a report reads them."""
    seeds = range(2, 2 + losses_CS.shape[1])
    candidates = [
        CandidateRecord(
            trial=trial,
            is_baseline=trial == 0,
            parameters={},
            screening_val_loss=float(single[trial]),
            replicates=tuple(
                ReplicateRecord(seed=seed, state="complete", val_loss=float(loss))
                for seed, loss in zip(seeds, losses, strict=True)
            ),
        )
        for trial, losses in zip(chosen, losses_CS, strict=True)
    ]
    return FinalistsRecord(
        name=f"aa{FINALISTS_SUFFIX}",
        study="aa",
        candidates=tuple(candidates),
        seeds=tuple(seeds),
        rounds=1,
        screened=len(single),
        tests=(),
    )


def find(judged: Sequence[FinalistsJudgement], truth: Losses) -> Findings:
    """Count what was declared, and hold it against the truth."""
    standings = [{each.trial: each.standing for each in judgement.candidates} for judgement in judged]
    held = [
        each.interval.low <= truth[each.trial] - truth[0] <= each.interval.high
        for judgement in judged
        for each in judgement.candidates
        if each.interval is not None
    ]
    return Findings(
        studies=len(judged),
        different=sum("better" in each.values() or "worse" in each.values() for each in standings),
        best_found=sum(each.get(1) == "better" for each in standings),
        best_won=sum(each.winner is not None and bool(truth[each.winner] == truth.min()) for each in judged),
        covered=float(np.mean(held)) if held else None,
    )


# ---------------------------------------------------------------------------------------------------------------- real


def train_real(home: Path, studies: int, candidates: int, seeds: int) -> Losses:
    """Losses of equal runs, each under a seed of its own: studies, candidates with the baseline, seeds."""
    torch.set_num_threads(1)
    shape = (studies, candidates + 1, seeds)
    corpus, file = real_text(home), home / "losses.json"
    losses: list[float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    for seed in range(len(losses), int(np.prod(shape))):
        losses.append(train(build_run({**REAL_RUN, "seed": seed}), corpus).history[-1].val_loss)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(losses), encoding="utf-8")
        draft.replace(file)
    return np.array(losses[: int(np.prod(shape))]).reshape(shape)


def real_text(home: Path) -> TokenizedCorpus:
    """The first pages of python-docs: enough for a small network, and little to evaluate."""
    texts = load_corpus("python-docs", home / "cache").texts
    pages = {"train": texts["train"][:200_000], "valid": texts["valid"][:20_000], "test": texts["test"][:20_000]}
    corpus = Corpus(name="pages", source="pages", origin="first pages of python-docs", texts=pages)
    return tokenize_corpus(corpus, TokenizerChoice(vocabulary=512), home / "cache")


def judge_real(losses: Losses) -> tuple[Findings, float]:
    """What real studies of equal candidates come to, and the standard deviation of a run's loss by its seed."""
    chosen = range(losses.shape[1])
    judged = [judge(record_of(chosen, study.mean(axis=1), study)) for study in losses]
    return find(judged, np.zeros(len(chosen))), float(losses.std(ddof=1))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="simulated ones of each kind")
    parser.add_argument("--real", action="store_true", help="train real ones too")
    parser.add_argument("--real-studies", type=int, default=10)
    parser.add_argument("--home", type=Path, default=Path("runs/aa"), help="folder of the real runs")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder for the figures")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"noise": NOISE, "simulated": []}
    for design, (candidates, seeds) in DESIGNS.items():
        for shared in (0.0, SHARED):
            for advantage in ADVANTAGES:
                found = simulate(options.studies, advantage, candidates, seeds, shared)
                case = {"design": design, "candidates": candidates, "seeds": seeds, "shared": shared}
                figures["simulated"].append({**case, "advantage": advantage, **dataclasses.asdict(found)})
                print(
                    f"{design}: {candidates} and the baseline, {seeds} seeds, {shared:.0%} of the noise shared, "
                    f"advantage {advantage:.2f}: different in {found.different} of {found.studies}, "
                    f"best declared better in {found.best_found}, winner in {found.best_won}; "
                    f"intervals hold the truth in {found.covered or 0:.1%}",
                    flush=True,
                )
    if options.real:
        options.home.mkdir(parents=True, exist_ok=True)
        losses = train_real(options.home, options.real_studies, *DESIGNS["GPU"])
        found, deviation = judge_real(losses)
        figures["real"] = {**dataclasses.asdict(found), "deviation": deviation, "losses": losses.tolist()}
        print(f"real: different in {found.different} of {found.studies}; seeds move a loss by {deviation:.1%}")
    keep("aa", figures, folder=options.results)


if __name__ == "__main__":
    main()

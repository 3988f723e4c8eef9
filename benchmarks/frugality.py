"""What pruning saves, and what it costs: whole sweeps of `lambda_phi`, pruned and not, under several sampler seeds.

python benchmarks/frugality.py --data PATH --home FOLDER      # six sweeps of forty trials: half an hour on two cores

Sweeps live in the folder; the same command again goes on with them, or reads what is finished. The two sweeps of a seed
begin with the same planned and random trials; from there each sampler learns from what it sees. Asked: at most 40 % of
the tokens, and a best validation perplexity within 2 % of the other's.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import re
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState
from results import keep

from hpo_reports.records.names import TRIAL_HISTORY

STUDY = "lambda_phi"
SEEDS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished sweep has found and spent."""

    best_val_ppl: float  # on the whole validation split
    tokens: int  # read for training, by all trials
    complete: int
    curves: list[list[float]]  # validation loss at each evaluation, by trial


def study_file(seed: int, *, pruned: bool) -> str:
    """The shipped study under another seed of its sampler, with its own pruner or none."""
    text = importlib.resources.files("hpo_studies").joinpath(f"{STUDY}.toml").read_text(encoding="utf-8")
    text = text.replace("[sampler]", f"[sampler]\nseed = {seed}")
    return text if pruned else re.sub(r"\[pruner\][^[]*", '[pruner]\nkind = "none"\n\n', text)


def sweep(home: Path, seed: int, trials: int, data: Path | None, *, pruned: bool) -> Outcome:
    """Run a whole study as a user would, and read what Optuna stored."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "study.toml"
    file.write_text(study_file(seed, pruned=pruned), encoding="utf-8")
    command = [sys.executable, "-m", "hpo", "run", "--study", str(file), "--trials", str(trials), "--no-finalists"]
    command += ["--data", str(data)] if data else []
    environment = {**os.environ, "HPO_HOME": str(home)}
    environment.pop("HPO_STORAGE", None)
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{home}/studies.db")
    return outcome_of(study.get_trials())


def outcome_of(trials: list[optuna.trial.FrozenTrial]) -> Outcome:
    """Best perplexity and tokens of a study's trials."""
    last = [trial.user_attrs[TRIAL_HISTORY][-1] for trial in trials]
    complete = [trial.state is TrialState.COMPLETE for trial in trials]
    return Outcome(
        best_val_ppl=min(each["val_ppl"] for each, whole in zip(last, complete, strict=True) if whole),
        tokens=sum(each["tokens"] for each in last),
        complete=sum(complete),
        curves=[list(trial.intermediate_values.values()) for trial in trials],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of text; default: the study's own")
    parser.add_argument("--home", type=Path, default=Path("runs/frugality"), help="folder of the sweeps")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    for seed in arguments.seeds:
        frugal, whole = (
            sweep(arguments.home / f"{seed}-{name}", seed, arguments.trials, arguments.data, pruned=name == "pruned")
            for name in ("pruned", "whole")
        )
        row = {"perplexity": frugal.best_val_ppl / whole.best_val_ppl, "tokens": frugal.tokens / whole.tokens}
        print(
            f"seed {seed}: best val ppl {frugal.best_val_ppl:.2f} pruned, {whole.best_val_ppl:.2f} not: "
            f"ratio {row['perplexity']:.3f}, at {row['tokens']:.1%} of the tokens "
            f"({frugal.complete} of {arguments.trials} trials ran to their end)",
            flush=True,
        )
        rows.append({"seed": seed, **row, "pruned": asdict(frugal), "unpruned": asdict(whole)})
    medians = {name: statistics.median(row[name] for row in rows) for name in ("perplexity", "tokens")}
    print(f"median: ratio {medians['perplexity']:.3f} at {medians['tokens']:.1%} of the tokens")
    text = arguments.data.name if arguments.data else "as the study chose"
    keep("frugality", {"study": STUDY, "text": text, "trials": arguments.trials, "medians": medians, "seeds": rows})


if __name__ == "__main__":
    main()

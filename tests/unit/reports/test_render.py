"""Whole reports: Markdown, JSON and CSV, in both languages."""

import csv
import io
import json
import math
import re
import shlex
import subprocess
import tomllib

import optuna
import pytest
from markdown_it import MarkdownIt
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo_reports.document.commands import configuration_toml, shell_quoted, toml_lines
from hpo_reports.errors import EmptyStudyError, ReportError
from hpo_reports.records.names import (
    TRIAL_CONTINUED,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_SLOT,
    TRIAL_SUSPICIOUS,
)
from hpo_reports.records.study import read_study
from hpo_reports.render import render
from tests.support.studies import FACTS, HOSTILE, pruned, running, study_of, trial


def markdown(*trials, **options) -> str:
    return render(read_study(study_of(*trials, **options)), "markdown", plain=True)


def tables(document: str) -> list[list[list[str]]]:
    """The cells of every table, as a Markdown parser sees them."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(document)
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(tokens[place + 1].content)
    return found


def token_types(document: str) -> set[str]:
    tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(document)
    return {part.type for token in tokens for part in (token, *(token.children or ()))}


def block(document: str, language: str) -> str:
    """The first block of a language, of the final decision where there is one."""
    text = document.rpartition("## Final decision")[2]
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


# ---------------------------------------------------------------------------------------------- markdown


def test_the_head_tells_where_the_numbers_come_from():
    document = markdown(trial(slot=0))
    for fact in (
        "# Experiments: lambda_phi\n",
        "2025-11-17 20:00 UTC, last run 2025-11-17 20:15 UTC",
        "Which weight of the Φ term gives the lowest loss?",
        "TPE, after 8 random or planned trials",
        "successive halving from evaluation 2 on; one trial in 3 goes on",
        "40 trials; 300,000 training tokens each, 10 evaluations each",
        "lambda_phi from 0.001 to 0.3, on a logarithmic scale",
        "1 for all trials; none was repeated under another\n",
        "python-docs, from documentation and docstrings of Python 3.11.2; 512,345 training",
        "digest a1b2c3d4e5f60718",
        "bpe, vocabulary 2,048; digest 0f1e2d3c4b5a6978",
        "Intel Xeon, 2 cores; profile cpu",
        "python 3.11.2, torch 2.13.0+cpu, optuna 5.0.0, hpo 0.1.0",
    ):
        assert fact in document


def test_every_item_of_the_head_has_its_own_line():
    head = markdown(trial(slot=0)).split("## Comparison")[0]
    assert head.count("**: ") == len(re.findall(r"^- \*\*[A-Z]\w+\*\*: \S", head, re.MULTILINE))


def test_the_comparison_reads_like_the_log():
    document = markdown(trial(5.0, slot=0), trial(4.8, learning_rate=0.004))
    heading, best, baseline = tables(document)[0]
    assert heading == [
        *("Exp", "LR", "Batch", "λ_phi", "Dropout", "Epochs", "Val PPL", "Word PPL", "Bits/byte"),
        *("Train PPL", "Val Φ", "Train Φ", "ΔΦ loss", "Time", "Curve", "Verdict"),
    ]
    assert best[:7] == ["**1**", "0.004", "8", "0.05", "0.1", "0.585", "121.51"]
    assert best[-1] == "18.1 % better (one run, no verdict)"
    assert baseline[6:14] == ["148.41", "2,980.96", "2.100", "141.17", "0.7100", "0.7212", "0.4567", "28 s"]
    assert baseline[-1] == "baseline"


def test_train_perplexity_is_explained():
    sentence = "Train PPL is measured like val PPL, without dropout, but on a fixed sample of the training text"
    assert sentence in markdown(trial(slot=0))


def test_differing_batch_sizes_are_noted():
    small = trial(slot=1, batch_size=4, measured={"step": 586})
    assert (
        "Batch sizes differ (4, 8). The number of tokens is equal, the number of updates is not: from 293 to 586."
        in markdown(trial(slot=0), small)
    )
    assert "Batch sizes differ" not in markdown(trial(slot=0), trial())


def test_pruned_and_failed_trials_have_their_own_table():
    failed = create_trial(
        state=TrialState.FAIL, user_attrs={TRIAL_SLOT: 5, TRIAL_OUTCOME: "failed", TRIAL_REASON: "OSError: disk | full"}
    )
    out_of_memory = trial(
        state=TrialState.PRUNED, outcome="out_of_memory", milestones=0, constraints={"out_of_memory": 1.0}
    )
    document = markdown(trial(5.0, slot=0), pruned(6.0), failed, running(), out_of_memory)
    complete, incomplete = tables(document)
    assert [row[0] for row in complete[1:]] == ["**0**"]
    assert [row[:2] for row in incomplete[1:]] == [
        ["1", "pruned"],
        ["4", "out of memory"],
        ["2", "failed"],
        ["3", "running"],
    ]
    assert incomplete[1][-3:] == ["60,000", "1,998.20", "behind its peers at 60,000 tokens"]
    assert incomplete[3][-1] == "OSError: disk | full"
    assert "They are not compared with complete trials." in document


def test_the_winner_is_named_with_its_evidence():
    document = markdown(trial(5.0, slot=0), trial(4.8, dropout=0.3), trial(4.85), pruned())
    assert "**Trial 1** has the lowest validation loss of 3 comparable complete runs: 4.8 nats per token." in document
    assert "- dropout: 0.3\n" in document
    assert "(trial 0, val PPL 148.41): 18.1 % better (one run, no verdict)." in document
    assert "Not distinguishable from it with one run each: trial 2\n" in document
    assert "one run, seed 1. The lowest of 4 is flattered" in document
    assert "expect another seed to be worse" in document


def test_a_winning_baseline_is_called_the_baseline():
    document = markdown(trial(4.0, slot=0), trial(5.0))
    assert "It is the baseline: no other compared trial has a lower loss." in document


def test_a_lead_within_the_noise_is_called_that():
    document = markdown(trial(5.0, slot=0), trial(4.99))
    assert "Its lead over the baseline counts as seed noise" in document


def test_a_tie_is_told():
    assert "Reached the same value later: trials 2, 3\n" in markdown(
        trial(5.0, slot=0), *(trial(4.0) for _ in range(3))
    )


def test_many_close_trials_are_counted_not_listed():
    assert "trials 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more\n" in markdown(*(trial(5.0, slot=s) for s in range(31)))


def test_an_implausibly_low_trial_is_flagged_loudly_and_does_not_win():
    document = markdown(trial(5.0, slot=0), trial(0.5, attributes={TRIAL_SUSPICIOUS: True}))
    assert document.index("> **IMPLAUSIBLY LOW: trial 1.**") < document.index("## Comparison")
    assert "## Winner: trial 0" in document
    assert tables(document)[0][2][-1] == "IMPLAUSIBLY LOW, not compared"


def test_the_decision_is_a_command_and_a_configuration_to_paste():
    document = markdown(trial(5.0, slot=0), trial(4.0, dropout=0.25), study_name="it's mine")
    command = shlex.split(block(document, "bash"))
    assert command == ["hpo", "train", "--from", "it's mine", "--trial", "1", "--epochs", "20"]
    configuration = tomllib.loads(block(document, "toml"))
    assert configuration["dropout"] == 0.25
    assert configuration["preset"] == "nano"
    assert configuration["iit"] is True


def test_the_totals_are_told():
    document = markdown(trial(slot=0, attributes={TRIAL_CONTINUED: 1}), pruned(milestones=2), trial())
    assert "3 (2 complete, 1 pruned)" in document
    assert "**Tokens spent**: 660,000\n" in document
    assert "**Tokens saved by pruning**: 240,032, 26.7 % of what all trials would have read" in document
    assert "**Training time**: 0.02 h" in document
    assert "1 of 3 trials, once in total" in document
    assert "Energy" not in document, "no GPU's meter was read"


def test_the_energy_of_the_gpus_is_told_where_they_have_a_meter():
    metered = {"energy_joules": 1.8e6}
    document = markdown(trial(slot=0, measured=metered), trial(measured=metered), pruned(milestones=2))
    assert "**GPU energy during training**: 1.000 kWh, by NVML" in document


def test_other_budgets_are_not_compared():
    document = markdown(trial(5.0, slot=0), trial(4.0, budget_tokens=600_000))
    assert tables(document)[0][2][-1] == "other budget, not compared"
    assert "300,000 or 600,000 training tokens each" in document
    assert "## Winner: trial 0" in document


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        ([trial(slot=1)], "The study has no baseline, so there is no verdict."),
        ([pruned(slot=0), trial()], "The baseline (trial 0) is not complete but pruned, so there is no verdict."),
        (
            [trial(slot=0, attributes={TRIAL_SUSPICIOUS: True}), trial()],
            "The baseline (trial 0) cannot be compared with",
        ),
    ],
)
def test_a_missing_verdict_is_explained(trials, sentence):
    assert sentence in markdown(*trials)


def test_without_complete_trials_nothing_wins():
    document = markdown(pruned(slot=0), running(), pruned(milestones=0))
    assert "No trial is complete." in document
    assert "None: no complete trial can be compared." in document
    assert "hpo train" not in document
    assert len(tables(document)) == 1


def test_numbers_that_are_not_finite_are_dashes():
    broken = {"val_word_ppl": math.nan, "val_bits_per_byte": None, "train_ppl": math.inf, "seconds": None}
    document = markdown(trial(slot=0, measured=broken), pruned(measured={"val_ppl": math.nan}))
    assert not re.search(r"\b(nan|inf|None)\b", document)
    assert tables(document)[0][1].count("–") == 4


def test_a_study_of_plain_optuna_renders():
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        trial.report(x, 0)
        if x > 0.5:
            raise optuna.TrialPruned
        return x

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective, n_trials=20)
    document = render(read_study(study), "markdown")
    complete, incomplete = tables(document)
    assert complete[0] == ["Exp", "x", "Objective", "Curve"]
    assert incomplete[0] == ["Exp", "Outcome", "x", "Last value", "Reason"]
    assert f"**Trial {study.best_trial.number}** has the highest objective value" in document
    assert "were not made by `hpo run`" in document
    assert "hpo train" not in document
    assert "PPL" not in document
    assert "- **Date**: –\n" in document


def test_several_objectives_make_a_limited_report():
    study = study_of(create_trial(values=[1.0, 2.0]), facts=None, directions=["minimize", "maximize"])
    document = render(read_study(study), "markdown")
    complete, front = tables(document)
    assert complete == [
        ["Exp", "objective_0", "objective_1", "Curve", "Verdict"],
        ["0", "1", "2", "–", "on the Pareto front"],
    ]
    assert front == [["Exp", "objective_0", "objective_1"], ["0", "1", "2"]]
    assert "This study has 2 objectives, which no single ranking orders" in document
    assert "With 2 objectives there is no single best trial" in document
    assert "hpo train" not in document


def two_objectives(*values: tuple[float, float], **options) -> list[FrozenTrial]:
    """Trials of ours with these losses and Φ, the first of them the baseline."""
    return [
        create_trial(values=pair, user_attrs=trial(pair[0], slot=slot, measured={"phi": pair[1]}, **options).user_attrs)
        for slot, pair in enumerate(values)
    ]


def test_our_runs_under_two_objectives_are_a_front_without_a_winner():
    trials = two_objectives((5.0, 0.9), (4.0, 0.7), (4.5, 0.6), (4.2, 0.8))
    document = markdown(*trials, directions=["minimize", "maximize"])
    complete, front = tables(document)
    assert [row[-1] for row in complete[1:]] == [
        "on the Pareto front",
        "on the Pareto front",
        "dominated",
        "on the Pareto front",
    ]
    assert "Val PPL" in complete[0]
    assert [row[0] for row in front[1:]] == ["1", "3", "0"]
    assert front[0][-2:] == ["Val PPL", "Val Φ"]
    assert front[1][-2:] == ["54.60", "0.7000"]
    assert "**Objectives**: lowest validation loss in nats per token and highest Φ of the validation text" in document
    assert "no single ranking orders: trials are listed by number.\n- The baseline is trial 0.\n" in document
    assert shlex.split(block(document, "bash")) == [
        "hpo",
        "train",
        "--from",
        "lambda_phi",
        "--trial",
        "1",
        "--epochs",
        "20",
    ]
    for claim in ("## Winner", "## Final decision", "**Bold**", "better", "worse", "Verdicts are differences"):
        assert claim not in document.replace("better in one", "")


def test_a_front_has_no_trial_that_cannot_be_compared():
    suspicious = two_objectives((1.0, 0.99), attributes={TRIAL_SUSPICIOUS: True})
    document = markdown(*suspicious, directions=["minimize", "maximize"])
    assert "No complete trial can be compared." in document
    assert len(tables(document)) == 1


def test_two_objectives_are_raw_numbers_in_json_and_csv():
    study = study_of(*two_objectives((5.0, 0.6), (4.0, 0.7)), directions=["minimize", "maximize"])
    content = json.loads(render(read_study(study), "json"))
    assert content["winner"] is None
    assert [(row["objective_0"], row["objective_1"], row["verdict"]) for row in content["rows"]] == [
        (5.0, 0.6, "dominated"),
        (4.0, 0.7, "on_front"),
    ]
    assert ",dominated," in render(read_study(study), "csv")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_break_neither_tables_nor_sections(text):
    facts = {
        **FACTS,
        "hardware": text,
        "corpus": {**FACTS["corpus"], "origin": text, "name": text},
        "versions": {text: text},
        "spec": {**FACTS["spec"], "description": text, "search": {text: {"choices": [text]}}},
    }
    hostile = create_trial(
        value=4.0,
        params={text: text},
        distributions={text: CategoricalDistribution([text])},
        user_attrs={**trial().user_attrs, TRIAL_ROLE: text},
    )
    trials = [trial(slot=0), hostile, pruned(attributes={TRIAL_REASON: text})]
    document = markdown(*trials, facts=facts, study_name=text)
    calm = markdown(trial(slot=0), trial(), pruned())
    assert re.findall(r"^## \w+", document, re.MULTILINE) == re.findall(r"^## \w+", calm, re.MULTILINE)
    assert not {"html_inline", "html_block", "link_open", "image"} & token_types(document)
    for table in tables(document):
        assert len({len(row) for row in table}) == 1
    assert tables(document)[0][1][5].replace("\\", "") != ""
    assert shlex.split(block(document, "bash").strip())[:2] == ["hpo", "train"]
    tomllib.loads(block(document, "toml"))


# ------------------------------------------------------------------------------------------ json and csv


def test_json_holds_head_rows_winner_and_totals():
    study = study_of(trial(5.0, slot=0), trial(4.0, dropout=0.3), pruned(), running())
    content = json.loads(render(read_study(study), "json"))
    assert list(content) == ["header", "rows", "winner", "finalists", "insights", "projection", "totals"]
    assert content["header"]["corpus"]["digest"] == "a1b2c3d4e5f60718"
    assert [row["outcome"] for row in content["rows"]] == ["complete", "complete", "pruned", "running"]
    assert (content["winner"]["number"], content["winner"]["parameters"]["dropout"]) == (1, 0.3)
    assert content["winner"]["verdict"]["standing"] == "better"
    assert content["winner"]["command"] == "hpo train --from lambda_phi --trial 1 --epochs 20"
    assert content["totals"]["outcomes"] == {"complete": 2, "pruned": 1, "running": 1}


def test_rows_say_what_a_perplexity_was_measured_on():
    study = study_of(trial(5.0, slot=0), pruned(), running())
    rows = json.loads(render(read_study(study), "json"))["rows"]
    assert [row["full_split"] for row in rows] == [True, False, None]
    assert [row["epoch"] for row in rows] == [pytest.approx(0.585), pytest.approx(0.117), None]


@pytest.mark.parametrize(
    "fact",
    [
        "# Experimentos: lambda_phi\n",
        "la menor pérdida de validación en nats por token",
        "successive halving desde la evaluación 2; sigue una prueba de cada 3",
        "1 en todas las pruebas; ninguna se repitió con otra",
        "La **prueba 1** tiene la menor pérdida de validación de 2 ejecuciones completas comparables: 4.8 nats",
        "18.1 % mejor (una sola ejecución, sin veredicto)",
        "3 (2 completas, 1 podada)",
        "hpo train --from lambda_phi --trial 1 --epochs 20",
    ],
)
def test_the_same_facts_in_spanish(fact):
    study = study_of(trial(5.0, slot=0), trial(4.8), pruned())
    assert fact in render(read_study(study), "markdown", language="es", plain=True)


def test_both_languages_have_the_same_numbers():
    record = read_study(study_of(trial(5.0, slot=0), trial(4.8, batch_size=4), pruned(), running()))
    english, spanish = (tables(render(record, "markdown", language=language)) for language in ("en", "es"))
    for table, translated in zip(english, spanish, strict=True):
        for row, other in zip(table[1:], translated[1:], strict=True):
            assert [cell for cell in row if cell[:1].isdigit()][:9] == [c for c in other if c[:1].isdigit()][:9]


def test_emoji_are_there_unless_plain():
    record = read_study(study_of(trial(5.0, slot=0), trial(4.8), trial(4.99), pruned()))
    decorated, plain = (render(record, "markdown", plain=plain) for plain in (False, True))
    for sign in ("⭐ baseline", "🏆 Winner", "❔ 18.1 % better", "🤷 not distinguishable"):
        assert sign in decorated
    assert not re.search("[\u2600-\u27bf\U0001f000-\U0001faff]", plain)


def test_a_long_table_is_shortened_and_keeps_the_baseline():
    trials = [trial(9.0, slot=0), *(trial(5.0 + place / 1000) for place in range(120))]
    document = markdown(*trials)
    rows = tables(document)[0][1:]
    assert len(rows) == 101
    assert rows[-1][-1] == "baseline"
    assert "The first 100 of 121 complete trials, and the baseline." in document


def test_json_is_valid_whatever_the_numbers():
    broken = trial(slot=0, measured={"val_ppl": math.nan, "seconds": math.inf})
    infinite = create_trial(value=math.inf, user_attrs={TRIAL_SLOT: 2})
    text = render(read_study(study_of(broken, infinite, study_name="Φ")), "json")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["rows"][0]["val_ppl"] is None
    assert '"name": "Φ"' in text


def test_json_without_a_winner_says_null():
    content = json.loads(render(read_study(study_of(pruned())), "json"))
    assert content["winner"] is None


def test_csv_has_a_row_per_trial_with_raw_numbers():
    study = study_of(trial(5.0, slot=0), pruned(attributes={TRIAL_REASON: 'comma, "quote"\nline'}), running())
    rows = list(csv.DictReader(io.StringIO(render(read_study(study), "csv"))))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert float(rows[0]["val_ppl"]) == math.exp(5.0)
    assert rows[1]["reason"] == 'comma, "quote"\nline'
    assert rows[2]["tokens"] == ""


@pytest.mark.parametrize("format", ["markdown", "json", "csv"])
def test_documents_end_in_one_line_end(format):
    text = render(read_study(study_of(trial(slot=0))), format)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("format", ["markdown", "json", "csv"])
def test_an_empty_study_is_refused_with_the_next_step(format):
    record = read_study(study_of(study_name="my study"))
    with pytest.raises(EmptyStudyError, match=r"has none; next: hpo run --study 'my study'$") as caught:
        render(record, format)
    assert "\n" not in str(caught.value)


def test_an_unknown_format_is_refused():
    with pytest.raises(ReportError, match="format must be one of markdown, html, json, csv, got 'pdf'"):
        render(read_study(study_of(trial())), "pdf")


# ---------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", "$(reboot)", "a\nb", "tab\t'q' \\", "\x1b[31m", "ñ\u2028Φ"]
)
def test_a_shell_reads_a_quoted_name_as_it_was(name):
    quoted = shell_quoted(name)
    assert quoted.isprintable()
    result = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert result.stdout.decode() == name


def test_toml_reads_parameters_as_they_were():
    parameters = {"a": 1e-05, "b": True, "c": 'x"\\\n\x7f\u202eΦ😀', "d e": "", "none": None, "n": 10**12, "": 0.1}
    expected = {name: value for name, value in parameters.items() if value is not None}
    assert tomllib.loads("\n".join(toml_lines(parameters))) == expected


def test_a_network_of_ones_own_is_pasted_where_study_files_have_it():
    text = configuration_toml({"dropout": 0.1, "network": "mine:Net"})
    assert tomllib.loads(text) == {"dropout": 0.1, "model": {"network": "mine:Net"}}
    assert tomllib.loads(configuration_toml({"dropout": 0.1, "network": ""})) == {"dropout": 0.1}

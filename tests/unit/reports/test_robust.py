"""Whatever a study holds, every report of it can be written and read: one contract, held by every nasty study."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from hpo_reports.records.names import (
    STUDY_TABLE,
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_RUN,
    TRIAL_SLOT,
)
from hpo_reports.records.study import StudyRecord, read_study
from hpo_reports.render import render
from tests.support.studies import study_of, trial

NASTY = "a|b `x` <made-by-user onload=1>\r\nnext 🙂 \ud800"
ATTRIBUTES = (
    *("slot", "role", "outcome", "reason", "suspicious", "run", "history", "machine", "continued", "causal"),
    *("imported", "candidate", "labels"),
)
JUNK: list[Any] = [None, 5, "x", [1], {"a": 1}, [{"val_ppl": "x"}], [[1]], True, {"spec": [1], "corpus": 5}]


class Anything:
    """A choice that is no plain value."""

    def __repr__(self) -> str:
        return "<made-by-user>"


def without_complete_trials() -> optuna.Study:
    return study_of(create_trial(state=TrialState.FAIL), create_trial(state=TrialState.WAITING), facts=None)


def numbers_that_are_not_finite() -> optuna.Study:
    steps = {0: math.nan, 1: math.inf, 2: -math.inf, 10**15: 1e308}
    values = (1.0, math.inf, -math.inf, -1e308, 1e308)
    return study_of(*(create_trial(value=value, intermediate_values=steps) for value in values), facts=None)


def huge_numbers() -> optuna.Study:
    history = [{"tokens": 10**400, "seconds": 1e308, "val_ppl": -5.0}, {"val_ppl": 0.0, "tokens": -1}]
    ours = {TRIAL_RUN: {"budget_tokens": 10**400, "seed": 10**30}, TRIAL_SLOT: 10**400, TRIAL_HISTORY: history}
    spaces = {"x": IntDistribution(0, 10**18)}
    return study_of(create_trial(value=1.0, params={"x": 10**18}, distributions=spaces, user_attrs=ours), facts=None)


def nasty_names() -> optuna.Study:
    spaces = {NASTY: CategoricalDistribution([NASTY])}
    ours = {TRIAL_REASON: NASTY, TRIAL_ROLE: NASTY, TRIAL_MACHINE: {"device": NASTY}}
    first, second = (
        create_trial(value=value, params={NASTY: NASTY}, distributions=spaces, user_attrs=ours) for value in (1.0, 2.0)
    )
    return study_of(first, second, trial(5.0, slot=0, attributes=ours), facts=None, study_name=NASTY)


def two_objectives() -> optuna.Study:
    trials = [create_trial(values=[1.0, math.inf]), create_trial(values=[1.0, 2.0], constraints={"c": 1.0})]
    return study_of(*trials, facts=None, directions=["minimize", "maximize"])


def any_object_as_a_choice() -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns of such choices
        space = CategoricalDistribution([None, True, 2, "a", Anything(), (1, 2), math.nan])
        trials = [
            create_trial(value=float(place), params={"c": choice}, distributions={"c": space})
            for place, choice in enumerate(space.choices)
        ]
    lacking = create_trial(value=9.0, params={"y": 1.0}, distributions={"y": FloatDistribution(0, 1)})
    return study_of(*trials, lacking, facts=None)


def attributes_of_other_types(junk: Any) -> optuna.Study:
    ours = {f"hpo:{name}": junk for name in ATTRIBUTES}
    trials = [create_trial(value=v, intermediate_values={0: 1.0}, user_attrs=ours) for v in (1.0, 2.0, 3.0)]
    study = study_of(*trials, facts=junk)
    study.set_user_attr(STUDY_TABLE, junk)
    return study


def many(value: Callable[[int], float], x: Callable[[int], float]) -> optuna.Study:
    """Enough trials for trends, importance and interactions."""
    spaces = {"x": FloatDistribution(-1.7e308, 1.7e308), "y": FloatDistribution(-1.7e308, 1.7e308)}
    spaces |= {"c": CategoricalDistribution(["a", "b", None])}
    trials = [
        create_trial(
            value=value(place), params={"x": x(place), "y": x(7 * place % 40), "c": ["a", "b", None][place % 3]},
            distributions=spaces,
        )
        for place in range(40)
    ]  # fmt: skip
    return study_of(*trials, facts=None)


def sums_beyond_the_largest_float() -> optuna.Study:
    measured = {"seconds": 1.5e308, "tokens": 1e308, "val_ppl": 1e308, "train_ppl": 0.0, "phi": -1.0, "step": 0}
    return study_of(trial(5.0, slot=0), *(trial(5.0 + n / 10, slot=n, measured=measured) for n in (1, 2, 3)))


STUDIES = {
    "many huge objectives": lambda: many(lambda n: (1.7e308, -1.7e308, 1e308)[n % 3], float),
    "many huge parameters": lambda: many(float, lambda n: (-1) ** n * 1.6e308 * ((n + 1) / 41)),
    "many tiny numbers": lambda: many(lambda n: 5e-324 * n, lambda n: 1e-320 * n),
    "many equal objectives": lambda: many(lambda _: 1.0, float),
    "many equal parameters": lambda: many(float, lambda _: 0.0),
    "many ties but one": lambda: many(lambda n: float(n == 3), lambda n: float(n == 3)),
    "sums": sums_beyond_the_largest_float,
    "no complete trial": without_complete_trials,
    "not finite": numbers_that_are_not_finite,
    "huge": huge_numbers,
    "names": nasty_names,
    "two objectives": two_objectives,
    "any choice": any_object_as_a_choice,
    **{f"attributes {junk!r}": (lambda junk=junk: attributes_of_other_types(junk)) for junk in JUNK},
}


@pytest.mark.parametrize("name", STUDIES)
class TestEveryReportOfANastyStudy:
    @pytest.fixture
    def record(self, name: str) -> StudyRecord:
        return read_study(STUDIES[name]())

    @pytest.mark.parametrize(
        ("template", "language"),
        [
            ("experiments", "en"),
            ("session", "es"),
            pytest.param("experiments", "es", marks=pytest.mark.nightly),
            pytest.param("session", "en", marks=pytest.mark.nightly),
        ],
    )
    def test_documents_have_no_element_of_the_users(self, record, template, language):
        render(record, "markdown", template=template, language=language, plain=True).encode()
        page = render(record, "html", template=template, language=language)
        page.encode()
        elements = Elements()
        elements.feed(page)
        assert "body" in elements.names
        assert "made-by-user" not in elements.names

    def test_json_is_strict(self, record):
        content = json.loads(render(record, "json"), parse_constant=pytest.fail)
        assert len(content["rows"]) == len(record.trials)

    def test_csv_has_a_row_for_every_trial(self, record):
        header, *rows = csv.reader(io.StringIO(render(record, "csv"), newline=""))
        assert len(rows) == len(record.trials)
        assert {len(row) for row in rows} == {len(header)}


class Elements(html.parser.HTMLParser):
    """The names of a page's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self.names.add(tag)

"""Study files: what is read, what is refused and in which words, and what makes two studies the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import StudyFileError
from hpo.study.former_names import role_of, stored_role, with_former_names
from hpo.study.sections import PrunerSection, Role, SamplerSection
from hpo.study.spec import StudySpec, TextSection
from hpo.study.toml import load_study_file, parse_study, shipped_studies
from tests.support.sweeps import make_spec

PROFILES = ("cpu", "cuda")
SMALLEST = """
name = "toy"
[run]
preset = "nano"
[search]
dropout = { low = 0.0, high = 0.4 }
"""


def refusal(text: str, profile: Any = "cpu") -> str:
    """What is said of a bad study file; always one line that starts with the file."""
    with pytest.raises(StudyFileError, match=r"^toy\.toml( \(profile \w+\))?: ") as caught:
        parse_study(text, "toy.toml", profile)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("toy.toml: ")


def searching(search: str, more: str = "") -> str:
    return f'name = "toy"\nrun = {{ preset = "nano" }}\nsearch = {search}\n{more}'


# ---------------------------------------------------------------------------------------------- what is accepted


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_files_are_valid_and_named_like_their_file(name: str, profile: Any) -> None:
    spec = load_study_file(name, profile)
    assert spec.name == name
    assert spec.profile == profile
    assert spec.description
    assert spec.trials <= (spec.max_trials() or spec.trials)
    for _, parameters in spec.planned():
        assert set(parameters) == set(spec.search)
        assert all(spec.search[key].holds(value) for key, value in parameters.items())


def test_two_objectives_are_the_loss_first_and_phi() -> None:
    assert parse_study(SMALLEST, "toy.toml", "cpu").objectives == ("val_loss",)
    two = parse_study(f"objectives = ['val_loss', 'phi']\npruner.kind = 'none'\n{SMALLEST}", "toy.toml", "cpu")
    assert two.objectives == ("val_loss", "phi")


def test_two_objectives_prune_nothing_where_the_file_does_not_say_how() -> None:
    two = parse_study(f"objectives = ['val_loss', 'phi']\n{SMALLEST}", "toy.toml", "cpu")
    assert two.pruner.kind == "none"
    one = parse_study(f"objectives = ['val_loss']\n{SMALLEST}", "toy.toml", "cpu")
    assert one.pruner.kind == "successive_halving"


def test_a_study_of_a_version_without_objectives_is_the_same_study() -> None:
    stored = make_spec().model_dump(mode="json")
    del stored["objectives"]
    assert StudySpec.model_validate(stored).identity() == make_spec().identity()


def test_the_studies_of_the_logs_are_shipped_with_their_descriptions() -> None:
    shipped = shipped_studies()
    assert {"lambda_phi", "lambda_phi_grid"} <= set(shipped)
    assert shipped["lambda_phi"].startswith("Which weight of the Φ term")


def test_the_smallest_file_gets_the_documented_defaults() -> None:
    spec = parse_study(SMALLEST, "toy.toml", "cpu")
    assert spec.trials == 40
    assert (spec.sampler.kind, spec.sampler.startup_trials) == ("tpe", 8)
    assert (spec.pruner.kind, spec.pruner.n_min_trials) == ("successive_halving", 3)
    assert spec.stopping.trials_without_improvement is None
    assert spec.text.corpus == "auto"


def test_a_profile_overrides_sections_key_by_key_and_searched_values_whole() -> None:
    text = (
        SMALLEST
        + """
[text]
vocabulary = 300
[profile.cpu]
trials = 5
[profile.cpu.text]
tokenizer = "word"
[profile.cpu.search]
dropout = { choices = [0.1, 0.2] }
[profile.cuda.run]
preset = "tiny_iit"
"""
    )
    cpu, cuda = parse_study(text, "toy.toml", "cpu"), parse_study(text, "toy.toml", "cuda")
    assert (cpu.trials, cuda.trials) == (5, 40)
    assert (cpu.text.tokenizer, cpu.text.vocabulary, cuda.text.tokenizer) == ("word", 300, "bpe")
    assert cpu.search["dropout"].choices == (0.1, 0.2)
    assert cuda.search["dropout"].high == 0.4
    assert (cpu.run["preset"], cuda.run["preset"]) == ("nano", "tiny_iit")


def test_a_file_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALLEST, encoding="utf-8")
    assert load_study_file(str(path), "cpu") == parse_study(SMALLEST, "toy.toml", "cpu")


@pytest.mark.parametrize(
    ("name", "choices", "baseline", "expected"),
    [("learning_rate", [1, 0.5], 1, "1.0"), ("batch_size", [8.0, 16.0], 8, "8"), ("iit", [True, False], True, "True")],
)
def test_planned_values_have_the_types_of_a_run(name: str, choices: list[Any], baseline: Any, expected: str) -> None:
    spec = make_spec(search={name: {"choices": choices}}, baseline={name: baseline})
    assert repr(spec.planned()[0][1][name]) == expected


def test_one_trial_s_run_has_the_shared_and_the_searched_values() -> None:
    run = make_spec(run={"preset": "nano", "warmup": 0.2}).run_with({"dropout": 0.3})
    assert (run.training.warmup, run.training.dropout, run.architecture.width) == (0.2, 0.3, 128)


# ---------------------------------------------------------------------------------------------- what is refused

BAD_ADDITIONS = {  # appended to a good file: key, and a word of the rule
    "colour = 1": ("colour", "unknown key"),
    "[text]\ncolour = 1": ("text.colour", "unknown key"),
    "[sampler]\ncolour = 1": ("sampler.colour", "unknown key"),
    "[pruner]\ncolour = 1": ("pruner.colour", "unknown key"),
    "[stopping]\ncolour = 1": ("stopping.colour", "unknown key"),
    "[baseline]\ncolour = 1": ("baseline.colour", "not a searched value"),
    "[[enqueued]]\ncolour = 1": ("enqueued[0].colour", "not a searched value"),
    "[profile.cpu]\ncolour = 1": ("colour", "unknown key"),
    "[profile.cpu.pruner]\ncolour = 1": ("pruner.colour", "unknown key"),
    "[profile.tpu]\ntrials = 3": ("profile", "only [profile.cpu] and [profile.cuda]"),
    "profile = 'cpu'": ("profile", "only [profile.cpu] and [profile.cuda]"),
    "[profile.cpu]\nprofile = 3": ("profile.cpu.profile", "unknown key"),
    "trials = 'many'": ("trials", "got 'many'"),
    "trials = 0": ("trials", "got 0"),
    "trials = -3": ("trials", "got -3"),
    "trials = 2.5": ("trials", "got 2.5"),
    "trials = true": ("trials", "got True"),
    "description = 3": ("description", "got 3"),
    "text = 'wikitext'": ("text", "got 'wikitext'"),
    "[text]\nvocabulary = -1": ("text.vocabulary", "got -1"),
    "[text]\nvocabulary = 5": ("text", "at least 257"),
    "[text]\ntokenizer = 'letters'": ("text.tokenizer", "got 'letters'"),
    "[sampler]\nkind = 'magic'": ("sampler.kind", "got 'magic'"),
    "[sampler]\nkind = 'grid'": ("sampler.kind", "needs choices"),
    "[sampler]\nseed = -1": ("sampler.seed", "got -1"),
    "[sampler]\nstartup_trials = 0": ("sampler.startup_trials", "got 0"),
    "[pruner]\nmin_resource = 0": ("pruner.min_resource", "got 0"),
    "[pruner]\nreduction_factor = 1": ("pruner.reduction_factor", "got 1"),
    "[pruner]\nn_min_trials = 0": ("pruner.n_min_trials", "got 0"),
    "[stopping]\ntrials_without_improvement = 0": ("stopping.trials_without_improvement", "got 0"),
    "baseline = 2026-11-21": ("baseline", "dictionary"),
    "baseline = [0.1]": ("baseline", "dictionary"),
    "[baseline]\ndropout = 0.5": ("baseline.dropout", "0.5 is outside search.dropout"),
    "[baseline]\ndropout = nan": ("baseline.dropout", "nan is outside"),
    "[baseline]\ndropout = 'high'": ("baseline.dropout", "'high' is outside"),
    "[baseline]\nwidth = 64": ("baseline.width", "not a searched value"),
    "[[enqueued]]\ndropout = 0.1\n[[enqueued]]\ndropout = -0.1": ("enqueued[1].dropout", "-0.1 is outside"),
    "enqueued = 3": ("enqueued", "got 3"),
    "objectives = 'val_loss'": ("objectives", """must be ["val_loss"] or ["val_loss", "phi"], got 'val_loss'"""),
    "objectives = ['loss']": ("objectives", """must be ["val_loss"] or ["val_loss", "phi"], got ['loss']"""),
    "objectives = ['val_loss', 'speed']": ("objectives", "got ['val_loss', 'speed']"),
    "objectives = 3": ("objectives", "got 3"),
    "objectives = []": ("objectives", 'must be ["val_loss"] or ["val_loss", "phi"], got []'),
    "objectives = ['phi']": ("objectives", "got ['phi']"),
    "objectives = ['phi', 'val_loss']": ("objectives", "got ['phi', 'val_loss']"),
    "objectives = ['val_loss', 'val_loss']": ("objectives", "got ['val_loss', 'val_loss']"),
    "objectives = ['val_loss', 'phi']\npruner.kind = 'median'": (
        "pruner.kind",
        """must be "none" with two objectives, got 'median'""",
    ),
    "objectives = ['val_loss', 'phi']\npruner.kind = 'none'\nstopping.trials_without_improvement = 5": (
        "stopping.trials_without_improvement",
        "with two objectives no trial is the best",
    ),
}


@pytest.mark.parametrize("addition", BAD_ADDITIONS)
def test_a_bad_key_or_value_is_named(addition: str) -> None:
    key, rule = BAD_ADDITIONS[addition]
    top_level = "" if addition.startswith("[") else addition
    message = refusal(f"{top_level}\n{SMALLEST}\n{'' if top_level else addition}")
    assert message.startswith(f"{key}: ")
    assert rule in message


BAD_SEARCHES = {
    "{}": ("search", "at least 1"),
    "3": ("search", "got 3"),
    "{ dropout = 3 }": ("search.dropout", "got 3"),
    "{ dropout = {} }": ("search.dropout", "needs low and high, or choices"),
    "{ dropout = { low = 0.1 } }": ("search.dropout", "needs low and high, or choices"),
    "{ dropout = { high = 0.1 } }": ("search.dropout", "needs low and high, or choices"),
    "{ dropout = { low = 0.4, high = 0.1 } }": ("search.dropout", "low 0.4 is above high 0.1"),
    "{ dropout = { low = 0.0, high = 0.1, log = true } }": ("search.dropout", "must start above 0"),
    "{ lambda_phi = { low = -1.0, high = 0.1, log = true } }": ("search.lambda_phi", "must start above 0"),
    "{ dropout = { low = 0.1, high = 0.2, log = true, step = 0.1 } }": ("search.dropout", "exclude each other"),
    "{ dropout = { low = 0.1, high = 0.2, step = 0 } }": ("search.dropout.step", "got 0"),
    "{ dropout = { low = nan, high = 0.1 } }": ("search.dropout.low", "finite"),
    "{ dropout = { low = 0.0, high = inf } }": ("search.dropout.high", "finite"),
    "{ dropout = { low = '0', high = 0.1 } }": ("search.dropout.low", "got '0'"),
    "{ dropout = { low = 0.0, high = 0.1, log = 'yes' } }": ("search.dropout.log", "got 'yes'"),
    "{ dropout = { low = 0.0, high = 0.1, scale = 2 } }": ("search.dropout.scale", "unknown key"),
    "{ dropout = { low = 0.0, choices = [0.1] } }": ("search.dropout", "choices stand alone"),
    "{ dropout = { log = true, choices = [0.1] } }": ("search.dropout", "choices stand alone"),
    "{ dropout = { choices = [] } }": ("search.dropout", "different values, at least one"),
    "{ dropout = { choices = [0.1, 0.2, 0.1] } }": ("search.dropout", "different values"),
    "{ dropout = { choices = 0.1 } }": ("search.dropout.choices", "got 0.1"),
    "{ dropout = { choices = [0.1, inf] } }": ("search.dropout", "finite, got inf"),
    "{ dropout = { choices = [0.1, true] } }": ("search.dropout", "got True"),
    "{ dropout = { low = 0.0, high = 1.5 } }": ("search.dropout", "below 1, got 1.5"),
    "{ colour = { choices = [1] } }": ("search.colour", "not a value of a run"),
    "{ budget_tokens = { choices = [1000, 2000] } }": ("search.budget_tokens", "all trials share it"),
    "{ seed = { low = 1, high = 9 } }": ("search.seed", "all trials share it"),
    "{ evaluations = { choices = [5, 10] } }": ("search.evaluations", "all trials share it"),
    "{ iit = { low = 0, high = 1 } }": ("search.iit", "is bool, so it needs choices"),
    "{ blocks = { low = 0, high = 1 } }": ("search.blocks", "is str, so it needs choices"),
    "{ blocks = { choices = ['attention', 'magic'] } }": ("search.blocks", "got 'magic'"),
    "{ preset = { choices = ['nano', 'magic'] } }": ("search.preset", "unknown preset 'magic'"),
    "{ batch_size = { low = 1.5, high = 3 } }": ("search.batch_size", "is a whole number"),
    "{ batch_size = { low = 2, high = 8, step = 1.5 } }": ("search.batch_size", "is a whole number"),
    "{ width = { choices = [128, 101] } }": ("search.width", "heads must divide width"),
}


@pytest.mark.parametrize("search", BAD_SEARCHES)
def test_a_bad_search_space_is_named(search: str) -> None:
    key, rule = BAD_SEARCHES[search]
    message = refusal(searching(search))
    assert message.startswith(f"{key}: ")
    assert rule in message


@pytest.mark.parametrize(
    ("run", "key", "rule"),
    [
        ("{ colour = 1 }", "run.colour", "not a value of a run"),
        ("{ preset = 'magic' }", "run", "unknown preset 'magic'"),
        ("{ warmup = 'long' }", "run", "warmup must be of type float"),
        ("{ seed = -1 }", "run", "seed must be at least 0"),
        ("3", "run", "got 3"),
    ],
)
def test_a_bad_shared_value_is_named(run: str, key: str, rule: str) -> None:
    message = refusal(f'name = "toy"\nrun = {run}\nsearch = {{ dropout = {{ low = 0.0, high = 0.4 }} }}')
    assert message.startswith(f"{key}: ")
    assert rule in message


@pytest.mark.parametrize("name", ["", " toy", "toy ", "two\\nlines", "bell\\u0007", "x" * 201])
def test_a_bad_name_is_refused(name: str) -> None:
    message = refusal(SMALLEST.replace('"toy"', f'"{name}"'))
    assert message.startswith("name: ")


@pytest.mark.parametrize("missing", ["name", "run", "search"])
def test_a_missing_section_is_named(missing: str) -> None:
    sections = {
        "name": 'name = "toy"',
        "run": 'run = { preset = "nano" }',
        "search": "search = { dropout = { low = 0.0, high = 0.4 } }",
    }
    message = refusal("\n".join(text for section, text in sections.items() if section != missing))
    assert message == f"{missing}: Field required"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("place", PROFILES)
def test_a_value_that_is_bad_in_one_profile_alone_is_refused_in_both(place: str, profile: str) -> None:
    message = refusal(f"{SMALLEST}\n[profile.{place}.run]\nbatch_size = 0", profile)
    assert "batch_size must be above 0, got 0" in message
    assert message.startswith("toy.toml (profile ") == (place != profile)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="profile"):
        make_spec(profile="tpu")


def test_a_syntax_error_is_told_with_its_line() -> None:
    assert re.fullmatch(r"not valid TOML: .*line 3, column \d+.*", refusal('name = "toy"\ntrials = 3\nrun = = 3\n'))


def test_a_key_given_twice_is_refused() -> None:
    assert refusal('name = "toy"\nname = "other"\n').startswith("not valid TOML: ")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "' + b"\xe9" + b'"\n')
    with pytest.raises(StudyFileError, match=r"latin\.toml: not UTF-8 at byte 8$"):
        load_study_file(str(path), "cpu")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"none\.toml: cannot be read \(No such file or directory\)$"):
        load_study_file(str(tmp_path / "none.toml"), "cpu")


def test_a_folder_is_no_study_file(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(StudyFileError, match=r"folder\.toml: cannot be read \(Is a directory\)$"):
        load_study_file(str(tmp_path / "folder.toml"), "cpu")


@pytest.mark.parametrize("name", ["lambda", "lambda_phi.tom", "", "../studies/lambda_phi"])
def test_an_unknown_shipped_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(f"unknown study {name!r}: shipped are architecture, ")):
        load_study_file(name, "cpu")


# ---------------------------------------------------------------------------------------------- what is run first


def test_the_baseline_is_planned_first_then_enqueued_configurations() -> None:
    spec = make_spec(enqueued=[{"dropout": 0.3}, {"dropout": 0.2}])
    assert spec.planned() == (
        ("baseline", {"dropout": 0.1}),
        ("enqueued", {"dropout": 0.3}),
        ("enqueued", {"dropout": 0.2}),
    )


def test_a_planned_configuration_is_completed_with_the_run_s_own_values() -> None:
    search = {"dropout": {"low": 0.0, "high": 0.4}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    spec = make_spec(run={"preset": "nano", "dropout": 0.25}, search=search, baseline={"learning_rate": 1e-3})
    assert spec.planned() == (("baseline", {"dropout": 0.25, "learning_rate": 1e-3}),)
    assert make_spec(search=search, baseline={}).planned() == (("baseline", {"dropout": 0.1, "learning_rate": 4e-3}),)


def test_a_searched_preset_is_the_run_s_own_in_the_baseline() -> None:
    spec = make_spec(run={"preset": "tiny_iit"}, search={"preset": {"choices": ["nano", "tiny_iit"]}}, baseline={})
    assert spec.planned() == (("baseline", {"preset": "tiny_iit"}),)


def test_a_grid_s_points_follow_without_those_already_planned() -> None:
    spec = make_spec(
        search={"dropout": {"choices": [0.0, 0.1]}, "layers": {"choices": [1, 2]}},
        baseline={"dropout": 0.1, "layers": 2},
        enqueued=[{"dropout": 0.0, "layers": 1}],
        sampler={"kind": "grid"},
    )
    assert spec.planned() == (
        ("baseline", {"dropout": 0.1, "layers": 2}),
        ("enqueued", {"dropout": 0.0, "layers": 1}),
        ("grid", {"dropout": 0.0, "layers": 2}),
        ("grid", {"dropout": 0.1, "layers": 1}),
    )
    assert spec.max_trials() == 4


def test_whole_numbers_in_a_grid_are_no_second_point() -> None:
    spec = make_spec(search={"lambda_phi": {"choices": [0, 1]}}, baseline={"lambda_phi": 1.0}, sampler={"kind": "grid"})
    assert [parameters for _, parameters in spec.planned()] == [{"lambda_phi": 1.0}, {"lambda_phi": 0.0}]


def test_only_a_grid_limits_the_total() -> None:
    assert make_spec(search={"dropout": {"choices": [0.1, 0.2]}}).max_trials() is None


# ---------------------------------------------------------------------------------------------- round trip, identity


@st.composite
def specs(draw: st.DrawFn) -> StudySpec:
    probabilities = st.floats(0, 0.9, allow_subnormal=False)
    low, high = sorted((draw(probabilities), draw(probabilities)))
    batch_sizes = draw(st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True))
    return make_spec(
        name=draw(st.text("abcé-Φ", min_size=1, max_size=10)),
        trials=draw(st.integers(1, 1000)),
        run={"preset": "nano", "learning_rate": draw(st.floats(1e-5, 1.0)), "iit": draw(st.booleans())},
        search={
            "dropout": {"low": low, "high": high},
            "batch_size": {"choices": batch_sizes},
            "blocks": {"choices": ["attention", "convolution+attention"]},
        },
        baseline={"dropout": low, "batch_size": batch_sizes[-1], "blocks": "attention"},
        enqueued=[{"dropout": high, "batch_size": batch_sizes[0]}] * draw(st.integers(0, 1)),
        sampler={"seed": draw(st.integers(0, 99))},
    )


@given(specs())
def test_a_study_survives_the_way_through_json(spec: StudySpec) -> None:
    again = StudySpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert again == spec
    assert again.digest() == spec.digest()
    assert repr(again.planned()) == repr(spec.planned())  # 1 and 1.0 are told apart


@given(specs(), specs())
def test_two_studies_have_one_digest_only_if_they_are_equal_in_all_that_counts(one: StudySpec, two: StudySpec) -> None:
    changed = two.model_copy(update={"trials": one.trials, "description": one.description, "stopping": one.stopping})
    assert (one.digest() == two.digest()) == (one == changed)


SCIENTIFIC: dict[str, dict[str, Any]] = {  # another value for everything that decides what is run
    "name": {"name": "other"},
    "run": {"run": {"preset": "nano", "warmup": 0.2}},
    "run.preset": {"run": {"preset": "tiny_iit"}},
    "search.low": {"search": {"dropout": {"low": 0.01, "high": 0.4}}},
    "search.high": {"search": {"dropout": {"low": 0.0, "high": 0.5}}},
    "search.step": {"search": {"dropout": {"low": 0.0, "high": 0.4, "step": 0.1}}},
    "search.choices": {"search": {"dropout": {"choices": [0.1, 0.2]}}},
    "search.log": {"search": {"dropout": {"low": 0.05, "high": 0.4, "log": True}}},
    "search.more": {"search": {"dropout": {"low": 0.0, "high": 0.4}, "lambda_phi": {"low": 0.0, "high": 0.4}}},
    "baseline": {"baseline": {"dropout": 0.2}},
    "enqueued": {"enqueued": [{"dropout": 0.2}]},
    "text.tokenizer": {"text": {"tokenizer": "word"}},
    "text.vocabulary": {"text": {"vocabulary": 512}},
    "sampler.kind": {"sampler": {"kind": "random"}},
    "sampler.startup_trials": {"sampler": {"startup_trials": 9}},
    "sampler.seed": {"sampler": {"seed": 2}},
    "objectives": {"objectives": ["val_loss", "phi"], "pruner": {"kind": "none"}},
    "pruner.kind": {"pruner": {"kind": "median"}},
    "pruner.min_resource": {"pruner": {"min_resource": 5}},
    "pruner.reduction_factor": {"pruner": {"reduction_factor": 2}},
    "pruner.percentile": {"pruner": {"percentile": 10.0}},
    "pruner.n_min_trials": {"pruner": {"n_min_trials": 4}},
    "run.iit": {"run": {"preset": "nano", "iit": False}},
    "model": {"model": {"network": "somewhere:Network"}, "run": {"preset": "nano", "iit": False}},
}
OPERATIONAL: dict[str, dict[str, Any]] = {
    "description": {"description": "another sentence"},
    "trials": {"trials": 11},
    "stopping": {"stopping": {"trials_without_improvement": 5}},
    "finalists": {"finalists": {"count": 2}},
    "replication": {
        "replication": {"study": "toy", "screened": 1, "candidates": [], "seeds": [2], "runs": [], "rounds": [1]}
    },  # no study file has it
    "text.corpus": {"text": {"corpus": "python-docs"}},
    "profile": {"profile": "cuda"},  # what it changes is in the other sections
}


def test_every_field_of_a_study_is_either_scientific_or_operational() -> None:
    sections = {"text": TextSection, "sampler": SamplerSection, "pruner": PrunerSection}
    fields = {f"{name}.{field}" for name, section in sections.items() for field in section.model_fields}
    fields |= set(StudySpec.model_fields) - set(sections) - {"search"}
    assert fields == {key for key in (*SCIENTIFIC, *OPERATIONAL) if not key.startswith(("search.", "run."))}


def test_all_scientific_changes_have_digests_of_their_own() -> None:
    digests = {key: make_spec(**change).digest() for key, change in SCIENTIFIC.items()}
    digests["unchanged"] = make_spec().digest()
    assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize("key", OPERATIONAL)
def test_what_is_not_science_leaves_the_digest(key: str) -> None:
    changed = make_spec(**OPERATIONAL[key])
    assert changed != make_spec()
    assert changed.identity() == make_spec().identity()
    assert changed.digest() == make_spec().digest()


def test_the_order_of_searched_values_is_not_science() -> None:
    search = {"dropout": {"low": 0.0, "high": 0.4}, "lambda_phi": {"low": 0.0, "high": 0.4}}
    turned = dict(reversed(search.items()))
    assert list(search) != list(turned)
    assert make_spec(search=search).digest() == make_spec(search=turned).digest()


NOT_REFUSED = pytest.fail.Exception


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("place", PROFILES)
def test_a_profile_that_is_no_table_is_refused(place: str, profile: str) -> None:
    assert refusal(f"{SMALLEST}\n[profile]\n{place} = 3", profile).startswith(f"profile.{place}: ")


def test_an_unknown_key_of_the_other_profile_is_refused() -> None:
    assert refusal(f"{SMALLEST}\n[profile.cuda]\nprofile = 3", "cpu").startswith("profile.cuda.profile: unknown key")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (searching("{ dropout = { choices = [0.1] } }", "baseline = { dropout = [1] }"), "baseline.dropout"),
        (searching("{ dropout = { choices = [0.1, [1]] } }"), "search.dropout.choices.1"),
        (SMALLEST.replace('"nano"', '"nano"\nwarmup = [1]'), "run.warmup"),
    ],
    ids=("baseline", "choices", "run"),
)
def test_a_list_where_a_value_belongs_is_named(text: str, key: str) -> None:
    message = refusal(text)
    assert message.startswith(f"{key}: ")
    assert "boolean" not in message


def test_a_run_s_own_value_outside_the_choices_needs_a_baseline() -> None:
    assert refusal(searching("{ batch_size = { choices = [16, 32] } }")).startswith("baseline.batch_size: ")


def test_a_run_s_own_value_outside_the_interval_needs_a_baseline() -> None:
    message = refusal(searching("{ learning_rate = { low = 0.1, high = 0.2 } }"))  # nano's is 0.002
    assert message.startswith("baseline.learning_rate: ")


def test_a_searched_preset_needs_one_in_the_baseline() -> None:
    text = 'name = "toy"\nrun = {}\nsearch = { preset = { choices = ["nano", "tiny_iit"] } }'
    assert refusal(text).startswith("baseline.preset: ")


def test_a_baseline_between_two_steps_is_refused() -> None:
    text = searching("{ dropout = { low = 0.0, high = 0.5, step = 0.25 } }", "baseline = { dropout = 0.1 }")
    assert refusal(text).startswith("baseline.dropout: 0.1 is outside search.dropout")


def test_an_interval_that_is_no_multiple_of_its_step_is_refused() -> None:
    text = searching("{ dropout = { low = 0.0, high = 0.4, step = 0.25 } }", "baseline = { dropout = 0.25 }")
    assert refusal(text).startswith("search.dropout: ")


def test_nothing_is_planned_twice() -> None:
    spec = make_spec(enqueued=[{"dropout": 0.1}, {"dropout": 0.3}, {"dropout": 0.3}])
    assert [parameters["dropout"] for _, parameters in spec.planned()] == [0.1, 0.3]


def test_a_whole_number_stands_for_a_float() -> None:
    whole, real = ({"run": {"preset": "nano", "warmup": warmup}} for warmup in (0, 0.0))
    assert make_spec(**whole).digest() == make_spec(**real).digest()


def test_a_whole_number_beyond_any_machine_s_is_refused() -> None:
    assert refusal(searching("{ memory_slots = { low = 8, high = 1e30 } }")).startswith("search.memory_slots")


FORMER = """
name = "old"
[run]
preset = "nano"
[search]
dropout = { low = 0.0, high = 0.4 }
[[known]]
dropout = 0.3
[pruner]
first_milestone = 2
reduction = 3
peers = 5
"""


def test_former_names_are_read_and_the_new_ones_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="hpo"):
        spec = parse_study(FORMER, "old.toml", "cpu")
    assert spec.enqueued == ({"dropout": 0.3},)
    assert (spec.pruner.min_resource, spec.pruner.reduction_factor, spec.pruner.n_min_trials) == (2, 3, 5)
    assert caplog.messages == [
        "old.toml: known is now called enqueued",
        "old.toml: pruner.first_milestone is now called pruner.min_resource",
        "old.toml: pruner.reduction is now called pruner.reduction_factor",
        "old.toml: pruner.peers is now called pruner.n_min_trials",
    ]


def test_a_specification_is_stored_under_the_names_that_earlier_versions_read() -> None:
    spec = parse_study(FORMER, "old.toml", "cpu")
    stored = with_former_names(spec.model_dump(mode="json"))
    assert "enqueued" not in stored
    assert stored["known"] == [{"dropout": 0.3}]
    assert stored["pruner"] == {
        "kind": "successive_halving",
        "first_milestone": 2,
        "reduction": 3,
        "percentile": 25.0,
        "peers": 5,
    }
    assert StudySpec.model_validate(stored) == spec


@pytest.mark.parametrize("role", get_args(Role))
def test_a_stored_role_is_read_as_it_was(role: Role) -> None:
    assert role_of(stored_role(role)) == role


def test_a_former_name_beside_its_new_one_is_refused() -> None:
    with pytest.raises(StudyFileError, match="peers is the former name of n_min_trials: give one of them"):
        parse_study(f"{FORMER}n_min_trials = 5\n", "old.toml", "cpu")


def test_each_table_may_have_names_of_its_own_age(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="hpo"):
        spec = parse_study(
            f"{FORMER}[profile.cpu.pruner]\nmin_resource = 4\n[profile.cuda]\nknown = []", "old.toml", "cpu"
        )
    assert spec.pruner.min_resource == 4
    assert caplog.messages[-1] == "old.toml: profile.cuda.known is now called profile.cuda.enqueued"

"""Each check passes for a conforming network and fails for one made to fail it."""

from __future__ import annotations

import time

import pytest

import hpo_model.training.conformance
import hpo_model.training.loop
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import ConfigError, NetworkError
from hpo_model.training.conformance import CHECKS, CheckFailed, Finding, check_context, validate
from tests.support.paths import SUPPORT


@pytest.fixture(autouse=True)
def own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUPPORT))
    monkeypatch.setattr(hpo_model.training.conformance, "BENCHMARK_S", 0.2)
    monkeypatch.setitem(hpo_model.training.conformance.RUN, "budget_tokens", 16_000)
    monkeypatch.setitem(hpo_model.training.conformance.RUN, "learning_rate", 1e-2)


@pytest.fixture(autouse=True)
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts this process's computing and what it slept, so that no other process slows a network down."""
    slept = [0.0]
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "perf_counter", lambda: time.process_time() + sum(slept))


def findings(name: str, corpus: TokenizedCorpus) -> dict[str, Finding]:
    return {finding.check: finding for finding in validate(f"networks:{name}", corpus)}


@pytest.mark.nightly  # by day the network of the document passes them: test_own_networks.py
@pytest.mark.parametrize("name", ["Recurrent", "WithPhi"])
def test_a_conforming_network_passes_all_checks(name: str, small_corpus: TokenizedCorpus) -> None:
    found = findings(name, small_corpus)
    assert list(found) == list(CHECKS)
    assert {finding.state for finding in found.values()} == {"passed"}, found
    assert "× the control arm's" in found["speed"].evidence
    assert "→" in found["learns"].evidence


FAILING = {
    "Broken": ("interface", "cannot be used for 64 tokens: RuntimeError: on purpose"),
    "Fixed": ("interface", "must return states of shape (1, 1, 64) for `output`, got (1, 64, 64)"),
    "Infinite": ("finite gradients", "not finite: inner.embedding.weight"),
    "Idle": ("finite gradients", "no gradient reaches inner.unused.weight, inner.unused.bias"),
    "Reversed": ("causality", "changing"),
    "Mixing": ("causality", "in training other sequences of the batch moved a sequence's logits by up to"),
    "Neighbours": ("causality", "in training other sequences of the batch moved a sequence's logits by up to"),
    "Dice": ("causality", "in training equal tokens gave logits that differ by up to"),
}


@pytest.mark.parametrize("name", FAILING)
def test_nothing_is_trained_after_a_failed_prerequisite(name: str, small_corpus: TokenizedCorpus) -> None:
    check, evidence = FAILING[name]
    found = findings(name, small_corpus)
    assert found[check].state == "failed"
    assert evidence in found[check].evidence
    assert "\n" not in found[check].evidence
    after = list(CHECKS)[list(CHECKS).index(check) + 1 :]
    assert {found[each].state for each in after} == {"not run"}
    assert all(f"after this has failed: {check}" in found[each].evidence for each in after)


@pytest.mark.parametrize(
    ("name", "check", "evidence"),
    [
        ("Anchored", "beginnings", "the first 1 tokens alone gave logits that differ by up to"),
        ("Counting", "resume", "state belongs into parameters or buffers"),
        ("Hungry", "memory", "at most 4 × is allowed"),
        ("Slow", "speed", "at least 0.1 × is asked for"),
        ("Dull", "learns", "a gain of 0.2 is asked for"),
    ],
)
def test_checks_that_train(name: str, check: str, evidence: str, small_corpus: TokenizedCorpus) -> None:
    with pytest.raises(CheckFailed, match=evidence):
        CHECKS[check](check_context(f"networks:{name}", small_corpus))


def test_runs_that_differ(small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo_model.training.loop, "check_causality", lambda network: None)
    with pytest.raises(CheckFailed, match="two runs of one seed differ in evaluation 1"):
        CHECKS["determinism"](check_context("networks:Dice", small_corpus))


def test_bad_input(small_corpus: TokenizedCorpus) -> None:
    with pytest.raises(ConfigError, match='network must be "module:Class"'):
        list(validate("networks.py", small_corpus))
    with pytest.raises(NetworkError, match="networks has no class of this name"):
        list(validate("networks:Nobody", small_corpus))

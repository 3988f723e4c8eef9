from __future__ import annotations

import signal

import pytest

from hpo.executors.stop import Stop, StopLevel


def test_nothing_is_wished_at_first() -> None:
    stop = Stop()
    assert stop.level is StopLevel.NONE
    assert stop.reason == ""


def test_a_level_never_falls_and_the_first_reason_stands() -> None:
    stop = Stop()
    stop.wish(StopLevel.AT_NEXT_EVALUATION, "a fault")
    stop.wish(StopLevel.NOW, "Ctrl-C")
    stop.wish(StopLevel.AT_NEXT_EVALUATION, "SIGTERM")
    assert stop.level is StopLevel.NOW
    assert stop.reason == "a fault"


def test_a_time_limit_that_has_passed_is_a_wish() -> None:
    stop = Stop(timeout_s=-1.0)
    assert stop.level is StopLevel.AT_NEXT_EVALUATION
    assert stop.reason == "the time limit is over"


def test_a_time_limit_ahead_is_none() -> None:
    assert Stop(timeout_s=3600.0).level is StopLevel.NONE


def test_a_time_limit_does_not_soften_a_wish_to_leave_now() -> None:
    stop = Stop(timeout_s=-1.0)
    stop.wish(StopLevel.NOW, "Ctrl-C")
    assert stop.level is StopLevel.NOW
    assert stop.reason == "Ctrl-C"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_signal_is_polite_and_the_second_is_not(number: signal.Signals, name: str) -> None:
    stop, said = Stop(), []
    with stop.on_signals(said.append):
        signal.raise_signal(number)
        assert stop.level is StopLevel.AT_NEXT_EVALUATION
        signal.raise_signal(number)
        assert stop.level is StopLevel.NOW
        signal.raise_signal(number)
    assert stop.level is StopLevel.NOW
    assert stop.reason == name
    assert len(said) == 1
    assert said[0].startswith(f"{name}: workers leave at their next evaluation")


def test_signals_of_two_kinds_add_up() -> None:
    stop = Stop()
    with stop.on_signals(lambda line: None):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert stop.level is StopLevel.NOW
    assert stop.reason == "SIGTERM"


def test_ctrl_c_after_the_time_limit_leaves_now() -> None:
    stop = Stop(timeout_s=-1.0)
    assert stop.level is StopLevel.AT_NEXT_EVALUATION
    with stop.on_signals(lambda line: None):
        signal.raise_signal(signal.SIGINT)
    assert stop.level is StopLevel.NOW


def test_signals_mean_what_they_did_before_once_the_run_is_over() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    during = []

    def run() -> None:
        with Stop().on_signals(lambda line: None):
            during.extend(signal.getsignal(number) for number in numbers)
            raise RuntimeError("in the run")

    with pytest.raises(RuntimeError, match="in the run"):
        run()
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in numbers] == before

"""Webhooks: what is posted, what is tried again, and that no secret is shown."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

import hpo.monitor.webhook
from hpo.errors import UsageError
from hpo.monitor.webhook import Webhook
from tests.support.receiver import Receiver

BODY = {"event": "study_ended", "text": "study ä finished"}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(hpo.monitor.webhook, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_a_body_arrives_as_json(receiver: Receiver, log: list[str]) -> None:
    assert Webhook.parse(f"http://{receiver.host}/hook/key?token=t").send(BODY)
    assert json.loads(receiver.bodies[0]) == BODY
    assert receiver.headers[0]["Content-Type"] == "application/json"
    assert receiver.paths == ["/hook/key?token=t"]
    assert log == []


def test_user_and_password_are_sent_as_basic_authentication(receiver: Receiver) -> None:
    assert Webhook.parse(f"http://me:p%40ss@{receiver.host}/").send(BODY)
    assert receiver.headers[0]["Authorization"] == "Basic bWU6cEBzcw=="


@pytest.mark.parametrize("answers", [[500, 503], [429], [408, 425, 500]])
def test_what_may_be_mended_is_tried_again(receiver: Receiver, answers: list[int]) -> None:
    receiver.answers = list(answers)
    assert Webhook.parse(f"http://{receiver.host}/").send(BODY)
    assert len(receiver.bodies) == len(answers) + 1


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (401, 1), (302, 1), (500, hpo.monitor.webhook.ATTEMPTS)])
def test_what_does_not_arrive_is_one_line_without_the_secrets(
    receiver: Receiver, status: int, attempts: int, log: list[str]
) -> None:
    receiver.answers = [status] * 9
    assert not Webhook.parse(f"http://me:sesame@{receiver.host}/hook/sesame?key=sesame").send(BODY)
    assert log == [f"webhook http://{receiver.host}/***: not delivered (HTTP {status}, attempt {attempts})"]
    assert len(receiver.paths) == attempts  # and no redirect was followed


def test_nobody_there_is_one_line(receiver: Receiver, log: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        assert not Webhook.parse(f"http://{host}/sesame").send(BODY)
    assert log == [f"webhook http://{host}/***: not delivered (Connection refused, attempt 4)"]


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    monkeypatch.setattr(hpo.monitor.webhook, "MAX_TOTAL_S", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        assert not Webhook.parse(f"http://127.0.0.1:{silent.getsockname()[1]}/").send(BODY)
        assert time.monotonic() - began < 5
    assert "no answer within 0.3 s" in log[0]


BAD = ["", "example.org/sesame", "ftp://h/sesame", "http:///sesame", "http://[sesame", "http://h:port/sesame"]


@pytest.mark.parametrize("url", [*BAD, "http://h/ä-sesame", "http://h/a b", "http://h/\nsesame", "file:///etc/passwd"])
def test_what_is_no_web_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UsageError, match="--notify takes a URL like") as caught:
        Webhook.parse(url)
    assert "sesame" not in str(caught.value)


def test_its_repr_holds_no_secret() -> None:
    webhook = Webhook.parse("https://me:sesame@example.org:8443/sesame?key=sesame#sesame")
    assert "sesame" not in repr(webhook)
    assert webhook.shown == "https://example.org:8443/***"
    assert webhook.url == "https://example.org:8443/sesame?key=sesame"

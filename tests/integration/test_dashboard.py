"""The dashboard's door: who is let in, what foreign pages can do, how it ends. Real requests to a real server."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import RDBStorage

from hpo.dashboard.server import AccessPolicy, open_server, read_password
from hpo.errors import UsageError
from hpo.home import Home
from tests.support.in_process import Hpo, refused

NOWHERE = Home(Path("no such folder"))
PASSWORD = "correct horse \N{GREEK CAPITAL LETTER PHI}"
LOOPBACK_NAMES = ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.8.8.8"]
FOREIGN_NAMES = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "localhost@evil.example",
    "192.168.0.1",
    "0.0.0.0",
    "localhost,evil.example",
    "[::1",
    "[::2]",
    "",
]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: str


@dataclass(frozen=True)
class Client:
    """Sends requests to a dashboard."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, {**self.headers, **headers})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read().decode())

    def get(self, path: str = "/api/studies", **headers: str) -> Answer:
        return self.send("GET", path, None, **headers)

    def studies(self) -> list[str]:
        answer = self.get()
        assert answer.status == 200, answer
        return [study["study_name"] for study in json.loads(answer.body)["study_summaries"]]


def login(password: str | bytes, user: str = "me") -> dict[str, str]:
    secret = password.encode() if isinstance(password, str) else password
    return {"Authorization": f"Basic {base64.b64encode(user.encode() + b':' + secret).decode()}"}


@pytest.fixture(scope="module")
def small_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Study 1, `small`, with a trial."""
    path = tmp_path_factory.mktemp("small") / "studies.db"
    storage = RDBStorage(f"sqlite:///{path}")
    study = optuna.create_study(study_name="small", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    storage.engine.dispose()
    return path


@pytest.fixture
def storage(small_database: Path, sqlite_url: str) -> Iterator[RDBStorage]:
    """A copy of it, to delete studies in."""
    shutil.copy(small_database, sqlite_url.removeprefix("sqlite:///"))
    storage = RDBStorage(sqlite_url)
    yield storage
    storage.engine.dispose()


@contextlib.contextmanager
def served(
    storage: RDBStorage, host: str = "127.0.0.1", password: str | None = None, home: Home = NOWHERE
) -> Iterator[Client]:
    with open_server(storage, home, AccessPolicy(host=host, port=0, password=password)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Client(server.server_port, {} if password is None else login(password))
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def client(storage: RDBStorage) -> Iterator[Client]:
    with served(storage) as client:
        yield client


def test_pages_and_studies_are_served(client: Client) -> None:
    assert client.studies() == ["small"]
    page = client.get("/dashboard")
    assert page.status == 200
    assert "<html" in page.body
    assert page.headers["X-Frame-Options"] == "SAMEORIGIN"


@pytest.mark.parametrize("name", LOOPBACK_NAMES)
def test_without_a_password_this_machine_may_be_called_by_its_names(client: Client, name: str) -> None:
    assert client.get(Host=f"{name}:{client.port}").status == 200
    assert client.get(Host=name).status == 200


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_without_a_password_no_other_name_is_answered(client: Client, name: str) -> None:
    for host in (name, f"{name}:{client.port}"):
        answer = client.get(Host=host)
        assert answer.status == 403
        assert "small" not in answer.body


def test_without_a_password_a_request_that_names_no_host_is_refused(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"GET /api/studies HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.makefile("rb").readline()


@pytest.mark.parametrize("user", ["me", "", "somebody else"])
def test_the_password_opens_under_any_user_name(storage: RDBStorage, user: str) -> None:
    with served(storage, password=PASSWORD) as client:
        assert client.get(**login(PASSWORD, user)).status == 200
        assert client.get(**login(PASSWORD, user), Host="hpo.example:8080").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        login(""),
        login(PASSWORD[:-1]),
        login(PASSWORD + "x"),
        login(PASSWORD.upper()),
        login(b"\xff\xfe"),
        {"Authorization": login(PASSWORD)["Authorization"].replace("Basic", "Bearer")},
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(PASSWORD.encode()).decode()},
    ],
)
def test_nothing_else_opens(storage: RDBStorage, headers: dict[str, str]) -> None:
    with served(storage, password=PASSWORD) as client:
        for answer in (client.get(**headers), client.get("/", **headers), client.get("/nowhere", **headers)):
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
            assert "small" not in answer.body
            assert PASSWORD not in answer.body
        assert client.send("DELETE", "/api/studies/1", None, **headers).status == 401
        assert client.studies() == ["small"]


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "http://localhost.evil", "null", ""])
@pytest.mark.parametrize("password", [None, PASSWORD])
def test_a_foreign_page_changes_nothing(storage: RDBStorage, origin: str, password: str | None) -> None:
    with served(storage, password=password) as client:
        assert client.send("DELETE", "/api/studies/1", Origin=origin).status == 403
        note = json.dumps({"body": "theirs", "version": 1}).encode()
        assert client.send("PUT", "/api/studies/1/note", note, Origin=origin).status == 403
        new = json.dumps({"study_name": "theirs", "directions": ["minimize"]}).encode()
        assert client.send("POST", "/api/studies", new, Origin=origin).status == 403
        assert client.studies() == ["small"]
        assert client.get(Origin=origin).status == 200, "browsers keep the answer from the page themselves"


@pytest.mark.parametrize("scheme", ["http", "https"])  # the latter behind a proxy that speaks TLS
def test_its_own_pages_change_things(client: Client, scheme: str) -> None:
    own = f"{scheme}://127.0.0.1:{client.port}"
    assert client.send("DELETE", "/api/studies/1", Origin=own).status == 204
    assert client.studies() == []


def test_what_is_no_browser_names_no_origin(client: Client) -> None:
    assert client.send("DELETE", "/api/studies/1").status == 204
    assert client.studies() == []


def test_a_refusal_waits_for_the_rest_of_its_request(client: Client) -> None:
    half = b"x" * 1000
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"POST /api/studies HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2000\r\n\r\n")
        for _ in range(2):
            time.sleep(0.1)  # a server that answered and left by now would reset the connection
            connection.sendall(half)
        assert b" 403 " in connection.makefile("rb").readline()


def test_a_slow_client_holds_up_nobody(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert client.studies() == ["small"]


def test_a_client_that_leaves_is_no_error(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves with a reset
        connection.sendall(b"GET / HTTP/1.1\r\n")
    assert client.studies() == ["small"]
    assert capfd.readouterr().err == ""


def test_it_listens_on_ipv6(storage: RDBStorage) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with served(storage, host="::1") as client:
        connection = http.client.HTTPConnection("::1", client.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/api/studies")
            assert connection.getresponse().status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_others_are_let_in_by_password_only(host: str) -> None:
    with pytest.raises(UsageError, match="--password-file"):
        AccessPolicy(host=host, port=8080)
    assert PASSWORD not in repr(AccessPolicy(host=host, port=8080, password=PASSWORD))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "::1", "127.9.9.9"])
def test_this_machine_needs_no_password(host: str) -> None:
    assert AccessPolicy(host=host, port=8080).password is None


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", "x" * 80])
def test_a_host_that_is_not_this_machine(storage: RDBStorage, host: str) -> None:
    with pytest.raises(UsageError, match=f"--host {host}"):
        open_server(storage, NOWHERE, AccessPolicy(host=host, port=0, password=PASSWORD))


@pytest.mark.parametrize("content", ["{}", "{}\n", "  {}\t\r\nsecond line\n", "\ufeff{}\n"])
def test_the_password_is_the_first_line_of_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "password"
    path.write_text(content.format(PASSWORD), encoding="utf-8", newline="")
    assert read_password(path) == PASSWORD


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "no password in its first line"),
        (b"\nsecond\n", "no password in its first line"),
        (b" \t \n", "no password in its first line"),
        (b"good\xff", "not UTF-8"),
    ],
)
def test_a_password_file_without_a_password(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"^--password-file {path}: .*{words}"):
        read_password(path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "OPTUNA_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "hpo", "dashboard", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(storage: RDBStorage, sqlite_url: str, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "password").write_text(PASSWORD, encoding="utf-8")
    port = free_port()
    behind = ("--host", "0.0.0.0", "--password-file", str(tmp_path / "password"))
    process = start("--port", str(port), "--storage", sqlite_url, *behind)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"dashboard: http://0.0.0.0:{port}/ (Ctrl-C ends it)\n"
        assert Client(port).get().status == 401
        assert Client(port, login(PASSWORD)).studies() == ["small"]
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            assert Client(port).get().status == 401  # connections are taken in turn: the slow one has its thread
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert out == "dashboard ended\n"
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--password-file"),
        (["--password-file", "nowhere"], "nowhere"),
        (["--password-file", os.devnull], "no password"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(hpo: Hpo, sqlite_url: str, arguments: list[str], words: str) -> None:
    refused(hpo("dashboard", *arguments, "--storage", sqlite_url), words)


def test_a_study_of_two_objectives_is_shown_with_its_curves(storage: RDBStorage) -> None:
    study = optuna.create_study(study_name="two", storage=storage, directions=["minimize", "maximize"])
    trial = study.ask()
    storage.set_trial_intermediate_value(trial._trial_id, 1, 5.0)  # as the objective does it
    study.tell(trial, [4.0, 0.8])
    with served(storage) as client:
        shown = json.loads(client.get(f"/api/studies/{study._study_id}").body)
    assert [each["values"] for each in shown["best_trials"]] == [[4.0, 0.8]]
    assert shown["trials"][0]["intermediate_values"] == [{"step": 1, "value": 5.0}]


@pytest.fixture
def filed(storage: RDBStorage, tmp_path: Path) -> tuple[str, Home]:
    """Where a page among the files of a trial is served, and the home that it lies in."""
    home, study = Home(tmp_path / "runs"), optuna.create_study(study_name="filed", storage=storage)
    home.artifacts.mkdir(parents=True)
    (tmp_path / "page.html").write_text("<script>1</script>", encoding="utf-8")
    trial = study.ask()
    name = upload_artifact(
        artifact_store=FileSystemArtifactStore(home.artifacts),
        file_path=str(tmp_path / "page.html"),
        study_or_trial=trial,
    )
    study.tell(trial, 1.0)
    return f"/artifacts/{study._study_id}/{trial._trial_id}/{name}", home


def test_a_file_is_no_page_of_the_dashboard(storage: RDBStorage, filed: tuple[str, Home]) -> None:
    path, home = filed
    with served(storage, home=home) as client:
        answer = client.get(path)
        assert answer.body == "<script>1</script>", "as it is, without a style of ours or a script that runs"
        assert answer.headers["Content-Security-Policy"] == "sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_a_file_of_another_machine_is_not_found_and_holds_up_nothing(
    storage: RDBStorage, filed: tuple[str, Home]
) -> None:
    path, home = filed
    with served(storage, home=Home(home.root / "elsewhere")) as client:
        answer = client.get(path)
        assert answer.status == 404
        assert "not on this machine" in answer.body
        assert client.studies() == ["small", "filed"]
        assert client.send("DELETE", "/api/studies/2").status == 204
        assert client.studies() == ["small"]


def test_files_are_behind_the_password_too(storage: RDBStorage, filed: tuple[str, Home]) -> None:
    path, home = filed
    with served(storage, home=home, password=PASSWORD) as client:
        assert client.get(path, Authorization="").status == 401
        assert client.get(path).status == 200


def test_pages_end_with_our_style_and_say_how_long_they_are(client: Client) -> None:
    page = client.get("/dashboard")
    assert page.body.endswith("</style>")
    assert int(page.headers["Content-Length"]) == len(page.body.encode())

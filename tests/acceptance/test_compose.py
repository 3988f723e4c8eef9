"""The commands of `docker/compose.yml` as they stand there, run as processes: no container engine is needed.

What Compose would do is done here: variables, secrets, environment. Only places are other ones: the secrets' folder,
the database's host, name and owner, the dashboard's port.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
import yaml
from optuna.trial import TrialState
from typer.main import get_command

from hpo.cli import app
from hpo_reports.records.names import TRIAL_SLOT
from tests.support.far_workers import wait_until
from tests.support.in_process import Hpo
from tests.support.paths import REPOSITORY
from tests.support.texts import write_text

COMPOSE = yaml.safe_load((REPOSITORY / "docker" / "compose.yml").read_text(encoding="utf-8"))
SERVICES = [name for name in COMPOSE["services"] if name != "postgres"]
SECRETS = "/run/secrets"
PASSWORDS = {"postgres_password": "s3cret of the database", "dashboard_password": "s3cret of the dashboard"}
STUDY = """
name = "small"
trials = 4
[text]
corpus = "{text}"
vocabulary = 300
[run]
preset = "nano"
width = 32
heads = 2
sequence_length = 32
batch_size = 4
budget_tokens = 12000
evaluations = 5
evaluation_tokens = 512
[search]
lambda_phi = {{ low = 0.001, high = 0.3, log = true }}
dropout = {{ low = 0.0, high = 0.4 }}
[baseline]
lambda_phi = 0.05
dropout = 0.1
[finalists]
replicates = 1
"""


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """As Compose does it: ${NAME:-default}, and $$ for a dollar."""
    if isinstance(value, dict):
        return {key: interpolated(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, variables) for each in value]
    if not isinstance(value, str):
        return value
    names = r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+):-(?P<default>[^}]*)\})"
    return re.sub(names, lambda match: match["dollar"] or variables.get(match["name"]) or match["default"], value)


@dataclass(frozen=True)
class Containers:
    """Starts what a service would start in its container."""

    root: Path
    url: sa.URL  # of the database, without a password
    programs: Path  # folder of `hpo`
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.secrets.mkdir()
        for name, password in PASSWORDS.items():
            (self.secrets / name).write_text(f"{password}\n", encoding="utf-8")

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    def environment(self) -> dict[str, str]:
        """What a service's command finds, once its entry script has read the password."""
        return {
            "HPO_HOME": str(self.root / "runs"),
            "HPO_STORAGE": self.url.render_as_string(),
            "PGPASSWORD": PASSWORDS["postgres_password"],
        }

    def command(self, name: str, **variables: str) -> list[str]:
        """A service's command, without its entry script."""
        found: list[str] = interpolated(COMPOSE["services"][name]["command"], variables)
        return found

    def start(self, name: str, places: dict[str, str] | None = None, **variables: str) -> subprocess.Popen[str]:
        service = interpolated(COMPOSE["services"][name], variables)
        places = {SECRETS: str(self.secrets), **(places or {})}
        arguments = [each for part in (service["entrypoint"], service["command"]) for each in part]
        for there, here in places.items():
            arguments = [argument.replace(there, here) for argument in arguments]
        theirs = sa.make_url(service["environment"]["HPO_STORAGE"])
        assert (theirs.drivername, theirs.host, theirs.password) == (self.url.drivername, "postgres", None)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "OPTUNA_", "PG"))}
        process = subprocess.Popen(
            arguments,
            cwd=self.root,
            env={
                **kept,
                "PATH": f"{self.programs}:{kept['PATH']}",
                "HPO_HOME": str(self.root / "runs"),
                "HPO_STORAGE": self.url.render_as_string(),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """What still runs after a failure."""
        for process in self.started:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    for password in PASSWORDS.values():
        assert password not in out + err
    return process.returncode, out, err


@pytest.mark.parametrize("name", SERVICES)
def test_commands_are_ones_that_hpo_has(name: str) -> None:
    command, *arguments = interpolated(COMPOSE["services"][name]["command"], {})
    context = get_command(app).commands[command].make_context(command, arguments)  # type: ignore[attr-defined]
    assert context.params.get("study") == (None if name == "dashboard" else "lambda_phi")


@pytest.mark.parametrize("name", SERVICES)
def test_the_password_reaches_hpo_by_its_environment_and_arguments_arrive_whole(name: str, tmp_path: Path) -> None:
    (tmp_path / "hpo").write_text('#!/bin/sh\nprintf "%s\\n" "$PGPASSWORD" "$@"\n', encoding="utf-8")
    (tmp_path / "hpo").chmod(0o755)
    containers = Containers(tmp_path, sa.make_url("postgresql+psycopg://hpo@postgres/hpo"), tmp_path)
    process = containers.start(name, STUDY='my "$study"; exit 3')
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    password, *arguments = out.splitlines()
    assert password == PASSWORDS["postgres_password"]
    expected = interpolated(COMPOSE["services"][name]["command"], {"STUDY": 'my "$study"; exit 3'})
    assert [each.replace(str(containers.secrets), SECRETS) for each in arguments] == expected


@pytest.fixture
def containers(tmp_path: Path, new_postgres_url: Callable[[], str]) -> Iterator[Containers]:
    """A database whose owner gets in by password, and the study file `small.toml` with its text."""
    text = write_text(tmp_path / "text")
    (tmp_path / "small.toml").write_text(STUDY.format(text=text), encoding="utf-8")

    url = sa.make_url(new_postgres_url())
    assert url.database is not None
    role = url.database  # as unique as the database
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        if connection.exec_driver_sql("SHOW is_superuser").scalar_one() != "on":
            pytest.skip("a role with a password is made by a superuser")
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORDS['postgres_password']}'")
        connection.exec_driver_sql(f"ALTER DATABASE {role} OWNER TO {role}")
        if "host" in url.query:  # the wheel's server lets everybody in on its socket
            rules = Path(str(connection.exec_driver_sql("SHOW hba_file").scalar_one()))
            before = rules.read_text(encoding="utf-8")
            rules.write_text(f"local all {role} scram-sha-256\n{before}", encoding="utf-8")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
    owner = sa.URL.create(url.drivername, role, None, url.host, url.port, url.database, url.query)
    made = Containers(tmp_path, owner, Path(sys.executable).parent)
    yield made
    made.end()
    with engine.connect() as connection:
        connection.exec_driver_sql(f"REASSIGN OWNED BY {role} TO CURRENT_USER")
        connection.exec_driver_sql(f"DROP OWNED BY {role}")
        connection.exec_driver_sql(f"DROP ROLE {role}")


def url_with_password(containers: Containers) -> str:
    return containers.url.set(password=PASSWORDS["postgres_password"]).render_as_string(hide_password=False)


def optuna_study(containers: Containers) -> optuna.Study:
    storage = optuna.storages.RDBStorage(url_with_password(containers), engine_kwargs={"poolclass": sa.NullPool})
    return optuna.load_study(study_name="small", storage=storage)


@pytest.mark.timeout(600)
def test_a_search_in_containers(containers: Containers, hpo: Hpo, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(containers.root / "small.toml")
    code, out, err = ended(containers.start("study", STUDY=file, TRIALS="4"))
    assert code == 0, err
    assert "0 of 4 trials finished" in out
    study = optuna_study(containers)
    assert study.trials == []

    first = containers.start("worker", STUDY="small")
    wait_until("a trial has begun", lambda: study.get_trials(deepcopy=False))
    first.terminate()  # as `docker compose stop` does
    code, out, err = ended(first)
    assert code == 130, err
    assert "SIGTERM" in out

    # Processes, both: the workers of this one are forked from another, which began without the password.
    workers = [containers.start("worker", STUDY="small") for _ in range(2)]
    for code, out, err in [ended(worker) for worker in workers]:
        assert code == 0, err
        assert "4 of 4 trials finished" in out
    trials = study.get_trials()
    assert sorted(trial.user_attrs[TRIAL_SLOT] for trial in trials) == [0, 1, 2, 3]
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    finalists = optuna.load_study(study_name="small--finalists", storage=study._storage).get_trials()
    assert [trial.state for trial in finalists] == [TrialState.COMPLETE] * 2

    for name, value in containers.environment().items():
        monkeypatch.setenv(name, value)
    answer = hpo(*containers.command("study", STUDY=file, TRIALS="4"))
    assert answer.code == 0, answer.err
    assert "nothing to do" in answer.out
    assert "lowest mean: trial" in answer.out
    assert hpo(*containers.command("worker", STUDY="small")).code == 0

    look_at_the_dashboard(containers)


def look_at_the_dashboard(containers: Containers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = containers.start("dashboard", {"8080": str(port)})
    assert process.stdout is not None
    announced = process.stdout.readline()
    assert announced.startswith(f"dashboard: http://0.0.0.0:{port}/"), ended(process)
    login = base64.b64encode(f"me:{PASSWORDS['dashboard_password']}".encode()).decode()
    for headers, status in (({}, 401), ({"Authorization": f"Basic {login}"}, 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/api/studies", headers=headers)
        response = connection.getresponse()
        assert response.status == status
        assert (b'"small"' in response.read()) == (status == 200)
        connection.close()
    process.terminate()
    code, _, err = ended(process)
    assert code == 0, err


def test_a_wrong_password_ends_in_one_line(containers: Containers) -> None:
    (containers.secrets / "postgres_password").write_text("another one")
    code, out, err = ended(containers.start("worker", STUDY="small"))
    assert (code, out) == (1, "")
    assert err.startswith("hpo: ")
    assert "password authentication failed" in err
    assert len(err.splitlines()) == 1


def test_the_password_may_come_from_a_pgpass_file(
    containers: Containers, hpo: Hpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:*:{PASSWORDS['postgres_password']}\n", encoding="utf-8")
    passwords.chmod(0o600)
    monkeypatch.setenv("HPO_STORAGE", containers.url.render_as_string())
    said = []
    for passfile in (passwords, tmp_path / "nothing"):
        monkeypatch.setenv("PGPASSFILE", str(passfile))
        said.append(hpo("studies").out)
    assert "holds no studies" in said[0]
    assert "password" in said[1]
    assert PASSWORDS["postgres_password"] not in "".join(said)

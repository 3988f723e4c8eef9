"""What containers are made of: files against their schemas, and against what the project and each other say.

That the commands of `compose.yml` work is shown in `tests/acceptance/test_compose.py`.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import sqlalchemy as sa
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from dockerfile_parse import DockerfileParser
from packaging.specifiers import SpecifierSet
from typer.main import get_command

from hpo.cli import app
from tests.support.paths import REPOSITORY

DOCKER = REPOSITORY / "docker"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yml").read_text(encoding="utf-8"))
KUBERNETES = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their values."""
    parser = DockerfileParser(fileobj=io.BytesIO((DOCKER / "Dockerfile").read_bytes()))
    return [(step["instruction"], step["value"]) for step in parser.structure]


@pytest.fixture(scope="module")
def copied(steps: list[tuple[str, str]]) -> list[str]:
    """What the image has from the repository."""
    return [source for kind, value in steps if kind == "COPY" for source in value.split()[:-1]]


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    """The compose specification."""
    return jsonschema.Draft202012Validator(get_builtin_schema("vendor.compose-spec"))


def found(value: Any, name: str) -> Iterator[Any]:
    """All values of this key, however deep."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == name:
                yield each
            yield from found(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from found(each, name)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


class TestImage:
    def test_all_that_is_copied_is_there_and_not_ignored(self, copied: list[str]) -> None:
        ignored, *rest = [line for line in lines(DOCKER / "Dockerfile.dockerignore") if not line.startswith("#")]
        assert ignored == "*", "else secrets and runs travel along"
        assert {line.removeprefix("!") for line in rest if line.startswith("!")} == set(copied)
        assert all((REPOSITORY / source).exists() for source in copied)

    def test_all_packages_and_what_their_build_needs_are_copied(self, copied: list[str]) -> None:
        packages = {folder.partition("/")[0] for folder in PROJECT["tool"]["setuptools"]["package-dir"].values()}
        documents = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
        assert packages | documents | {"pyproject.toml", "constraints.txt"} == set(copied)

    def test_it_runs_our_program_as_nobody_special(self, steps: list[tuple[str, str]]) -> None:
        last = dict(steps)
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"]), "a number: Kubernetes cannot check a name"
        assert json.loads(last["ENTRYPOINT"])[0] in PROJECT["project"]["scripts"]
        kinds = [kind for kind, _ in steps]
        assert "RUN" not in kinds[kinds.index("USER") :]

    def test_every_installation_is_constrained(self, steps: list[tuple[str, str]]) -> None:
        installations = [part for kind, value in steps if kind == "RUN" for part in value.split("&&") if "pip " in part]
        assert len(installations) == 3
        assert all(" -c constraints.txt " in installation for installation in installations)

    def test_its_python_is_the_one_of_the_constraints(self, steps: list[tuple[str, str]]) -> None:
        version = dict(steps)["FROM"].removeprefix("python:").removesuffix("-slim")
        assert version in SpecifierSet(PROJECT["project"]["requires-python"])
        assert f"Python {version}." in lines(REPOSITORY / "constraints.txt")[0]

    def test_torch_comes_first_and_without_cuda_unless_asked_for(self, steps: list[tuple[str, str]]) -> None:
        runs = [value for kind, value in steps if kind == "RUN" and "pip " in value]
        assert "--no-deps" in runs[0]
        assert runs[0].endswith(" torch")
        assert '--index-url "$TORCH_INDEX"' in runs[0]
        assert ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu") in steps

    def test_the_projects_dependencies_are_the_layer_below_its_code(self, steps: list[tuple[str, str]]) -> None:
        step = next(value for kind, value in steps if "requirements.txt" in value)
        listing, _, _ = step.partition("> /tmp/requirements.txt")
        printed = subprocess.run(["sh", "-c", listing], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert printed.stdout.splitlines() == PROJECT["project"]["dependencies"]


class TestCompose:
    @pytest.mark.parametrize("name", ["compose.yml", "compose.cuda.yml"])
    def test_it_follows_the_specification(self, schema: jsonschema.Draft202012Validator, name: str) -> None:
        schema.validate(yaml.safe_load((DOCKER / name).read_text(encoding="utf-8")))

    def test_the_specification_finds_mistakes(self, schema: jsonschema.Draft202012Validator) -> None:
        assert not schema.is_valid({**COMPOSE, "services": {"worker": {"comand": "hpo"}}})

    def test_services_secrets_and_volumes_that_are_named_are_there(self) -> None:
        for service in COMPOSE["services"].values():
            assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
            assert set(service["secrets"]) <= set(COMPOSE["secrets"])
            assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])

    def test_the_override_changes_services_that_are_there(self) -> None:
        override = yaml.safe_load((DOCKER / "compose.cuda.yml").read_text(encoding="utf-8"))
        assert set(override["services"]) == set(COMPOSE["services"]) - {"postgres"}
        assert {service["image"] for service in override["services"].values()} == {"assay:cuda"}
        for build in found(override, "args"):
            assert set(build) == {"TORCH_INDEX"}

    def test_ports_are_published_to_this_machine_alone(self) -> None:
        published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
        assert published
        assert all(port.startswith("127.0.0.1:") for port in published)

    def test_secrets_are_files_that_git_ignores(self) -> None:
        for secret in COMPOSE["secrets"].values():
            folder, _, _ = secret["file"].partition("/")
            assert f"{folder}/" in lines(DOCKER / ".gitignore")
        for url in found(COMPOSE, "HPO_STORAGE"):
            assert sa.make_url(url).password is None
            assert sa.make_url(url).host in COMPOSE["services"]


class TestKubernetes:
    @pytest.mark.parametrize("version", ["1.30", "1.34", kubernetes_validate.latest_version()])
    @pytest.mark.parametrize("resource", KUBERNETES, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
    def test_it_follows_the_schemas(self, resource: dict[str, Any], version: str) -> None:
        kubernetes_validate.validate(resource, version, strict=True)

    def test_the_schemas_find_mistakes(self) -> None:
        job = {**KUBERNETES[-1], "spec": {**KUBERNETES[-1]["spec"], "backofLimit": 3}}
        with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
            kubernetes_validate.validate(job, "1.30", strict=True)

    def test_what_is_named_is_there(self) -> None:
        there = {(each["kind"], each["metadata"]["name"]): each for each in KUBERNETES}
        for reference in found(KUBERNETES, "secretKeyRef"):
            assert reference["key"] in there["Secret", reference["name"]]["stringData"]
        for reference in found(KUBERNETES, "configMapRef"):
            assert ("ConfigMap", reference["name"]) in there
        for name in found(KUBERNETES, "claimName"):
            assert ("PersistentVolumeClaim", name) in there
        assert ("Service", there["StatefulSet", "postgres"]["spec"]["serviceName"]) in there
        url = sa.make_url(there["ConfigMap", "assay"]["data"]["HPO_STORAGE"])
        assert ("Service", url.host) in there
        assert url.password is None

    def test_there_is_no_password_in_it(self) -> None:
        for secret in found(KUBERNETES, "stringData"):
            assert set(secret.values()) == {""}

    def test_its_commands_are_ones_that_hpo_has(self) -> None:
        values = next(each["data"] for each in KUBERNETES if each["kind"] == "ConfigMap")
        arguments = list(found(KUBERNETES, "args"))
        assert [name for name, *_ in arguments] == ["run", "worker"]
        for name, *rest in arguments:
            given = [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], each) for each in rest]
            context = get_command(app).commands[name].make_context(name, given)  # type: ignore[attr-defined]
            assert context.params["study"] == "lambda_phi"

    def test_workers_that_are_preempted_are_replaced_however_often(self) -> None:
        job = KUBERNETES[-1]["spec"]
        template = job["template"]["spec"]
        assert template["restartPolicy"] == "Never", "the only one that a podFailurePolicy goes with"
        for rule in found(job["podFailurePolicy"], "onExitCodes"):
            assert rule["containerName"] in [container["name"] for container in template["containers"]]
        first = job["podFailurePolicy"]["rules"][0]
        assert (first["action"], first["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")

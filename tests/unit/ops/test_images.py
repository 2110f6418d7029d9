"""What the Dockerfiles promise, read from the files, without Docker."""

from __future__ import annotations

import re
import runpy
from fnmatch import fnmatch

from compose_work import DOCKERFILES, OWN_SERVICES, ROOT, WORKERS, Service, dockerfile


def copied(name: str) -> list[str]:
    """The paths that a Dockerfile copies out of the repository."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", dockerfile(name), re.MULTILINE)
    return [path for line in lines for path in line.split()]


def test_both_images_run_as_the_user_that_compose_names(services: dict[str, Service]) -> None:
    for name in DOCKERFILES:
        assert re.findall(r"^USER (.+)$", dockerfile(name), re.MULTILINE) == ["10001:10001"]
    assert {services[name]["user"] for name in OWN_SERVICES} == {"10001:10001"}


def test_every_file_that_a_build_needs_exists_and_reaches_it(services: dict[str, Service]) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    for name in OWN_SERVICES:
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
    for name in DOCKERFILES:
        assert copied(name)
        for path in copied(name):
            assert (ROOT / path).exists(), path
            assert any(fnmatch(path, pattern) for pattern in sent), f"{path} is kept out by .dockerignore"


def test_dockerfiles_take_each_build_argument_that_compose_gives(services: dict[str, Service]) -> None:
    for name in OWN_SERVICES:
        text = (ROOT / services[name]["build"]["dockerfile"]).read_text(encoding="utf-8")
        taken = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
        assert set(services[name]["build"]["args"]) == taken


def test_dockerfiles_build_without_a_registry_for_their_syntax() -> None:
    assert not any("syntax=" in dockerfile(name) for name in DOCKERFILES)


def test_the_image_has_the_torch_that_bootstrap_installs(services: dict[str, Service]) -> None:
    bootstrap = (ROOT / "ops/bootstrap").read_text(encoding="utf-8")
    (torch,) = set(re.findall(r"torch==[\d.]+", bootstrap))
    assert {services[name]["build"]["args"]["TORCH_SPEC"] for name in WORKERS} == {torch}


def test_the_producer_image_is_asked_for_nothing_of_the_worker() -> None:
    direct_requirements = runpy.run_path(str(ROOT / "ops/docker/requirements.py"))["direct_requirements"]
    base = direct_requirements(ROOT / "pyproject.toml", [])
    names = {re.split(r"[^\w.-]", line)[0] for line in base}
    assert "redis" in names
    assert not names & {"torch", "transformers", "safetensors"}
    assert "requirements.py pyproject.toml otel >" in dockerfile("Dockerfile.producer")
    assert any(line.startswith("torch") for line in direct_requirements(ROOT / "pyproject.toml", ["worker"]))


def test_the_passwords_are_kept_out_of_the_repository_and_of_the_builds() -> None:
    assert "/.secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignore = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert ignore[0] == "*"
    assert not any("secrets" in line for line in ignore)

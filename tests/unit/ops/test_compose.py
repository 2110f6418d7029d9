"""What docker-compose.yml, the Dockerfiles and redis.conf promise, read from the files, without Docker."""

from __future__ import annotations

import re
import runpy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILES = ("Dockerfile.producer", "Dockerfile.worker")
OWN_SERVICES = ("worker", "worker-gpu", "producer")
WORKERS = ("worker", "worker-gpu")
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")

Service = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file as it is where no setting is given."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert "${" not in DEFAULT.sub("", text), "a setting without a default"
    loaded: dict[str, Any] = yaml.safe_load(DEFAULT.sub(r"\1", text))
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Service]:
    found: dict[str, Service] = compose["services"]
    return found


def dockerfile(name: str) -> str:
    return (ROOT / "ops/docker" / name).read_text(encoding="utf-8")


def copied(name: str) -> list[str]:
    """The paths that a Dockerfile copies out of the repository."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", dockerfile(name), re.MULTILINE)
    return [path for line in lines for path in line.split()]


def mounts(service: Service) -> list[tuple[str, str, bool]]:
    """(source, target, read-only) of each mount, from the short and the long form."""
    found = []
    for mount in service.get("volumes", []):
        if isinstance(mount, str):
            source, target, *mode = mount.split(":")
            found.append((source, target, mode == ["ro"]))
        else:
            found.append((mount["source"], mount["target"], mount.get("read_only", False)))
    return found


def redis_settings() -> dict[str, str]:
    lines = (ROOT / "ops/redis/redis.conf").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return dict(pairs)


def test_plain_up_starts_redis_and_cpu_workers_only(services: dict[str, Service]) -> None:
    assert {name for name, service in services.items() if "profiles" not in service} == {"redis", "worker"}
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert services["producer"]["profiles"] == ["tools"]


def test_redis_keeps_what_it_is_told_and_never_evicts(services: dict[str, Service]) -> None:
    settings = redis_settings()
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    configured = services["redis"]["command"][1]
    assert ("./ops/redis/redis.conf", configured, True) in mounts(services["redis"])
    assert ("redis", settings["dir"], False) in mounts(services["redis"])


def test_redis_is_not_reachable_from_outside_the_project(services: dict[str, Service]) -> None:
    assert not any("ports" in service or "network_mode" in service for service in services.values())


def test_every_service_runs_as_a_plain_user_on_a_read_only_root(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


def test_both_images_run_as_the_user_that_compose_names(services: dict[str, Service]) -> None:
    for name in DOCKERFILES:
        assert re.findall(r"^USER (.+)$", dockerfile(name), re.MULTILINE) == ["10001:10001"]
    assert {services[name]["user"] for name in OWN_SERVICES} == {"10001:10001"}


def test_long_running_services_say_whether_they_are_healthy(services: dict[str, Service]) -> None:
    assert "redis-cli ping" in services["redis"]["healthcheck"]["test"][1]
    assert re.search(r'^HEALTHCHECK .*CMD \["worker-health"\]$', dockerfile("Dockerfile.worker"), re.MULTILINE)
    for name in OWN_SERVICES:
        assert services[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_workers_can_be_scaled_and_come_back(services: dict[str, Service]) -> None:
    for name in WORKERS:
        assert "container_name" not in services[name]
        assert services[name]["restart"] == "unless-stopped"
        assert services[name]["init"] is True


def test_a_worker_serves_the_mounted_model(services: dict[str, Service]) -> None:
    for name in WORKERS:
        command = services[name]["command"]
        assert command[0] == "start"
        alias, _, path = command[command.index("--model") + 1].partition("=")
        assert alias
        assert path in {target for _, target, _ in mounts(services[name])}
        assert int(command[command.index("--concurrency") + 1]) > 0


def test_the_gpu_worker_reserves_a_device_and_gets_a_cuda_build(services: dict[str, Service]) -> None:
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert len(device["device_ids"]) == 1
    assert services["worker-gpu"]["build"]["args"]["TORCH_INDEX_URL"].rpartition("/")[2].startswith("cu")
    assert services["worker"]["build"]["args"]["TORCH_INDEX_URL"].endswith("/cpu")
    assert services["worker-gpu"]["image"] != services["worker"]["image"]


def test_every_side_gets_the_same_redis_and_store(services: dict[str, Service]) -> None:
    for name in OWN_SERVICES:
        environment = services[name]["environment"]
        assert environment["PROMPTMILL_REDIS_URL"] == "redis://redis:6379/0"
        assert ("store", environment["PROMPTMILL_STORE"], False) in mounts(services[name])


def test_named_volumes_are_declared_and_host_paths_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for source, _, _ in mounts(service):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in compose["volumes"], source


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
    assert "requirements.py pyproject.toml >" in dockerfile("Dockerfile.producer")
    assert any(line.startswith("torch") for line in direct_requirements(ROOT / "pyproject.toml", ["worker"]))


def test_every_setting_of_compose_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    shown = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) <= shown

"""What docker-compose.yml and redis.conf promise, read from the files, without Docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from compose_work import DOCKERFILES, OWN_SERVICES, ROOT, WORKERS, Service, dockerfile, mounts

from jobs.telemetry.tracing import _ASKED_BY


def redis_settings() -> dict[str, str]:
    lines = (ROOT / "ops/redis/redis.conf").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return dict(pairs)


def test_plain_up_starts_redis_cpu_workers_and_the_exporter(services: dict[str, Service]) -> None:
    plain = {name for name, service in services.items() if "profiles" not in service}
    assert plain == {"redis", "worker", "exporter"}
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert services["producer"]["profiles"] == ["tools"]
    assert services["prometheus"]["profiles"] == services["grafana"]["profiles"] == ["monitoring"]


def test_redis_keeps_what_it_is_told_and_never_evicts(services: dict[str, Service]) -> None:
    settings = redis_settings()
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert ("./ops/redis", "/etc/promptmill", True) in mounts(services["redis"])
    assert "exec redis-server /etc/promptmill/redis.conf" in services["redis"]["command"][-1]
    assert ("redis", settings["dir"], False) in mounts(services["redis"])


def test_redis_starts_with_users_made_of_the_password_files(services: dict[str, Service]) -> None:
    script = services["redis"]["command"][-1]
    used = re.findall(r"/run/secrets/(\w+)", script)
    assert used == ["redis_producer", "redis_worker", "redis_admin"]
    assert services["redis"]["secrets"] == used
    assert "--aclfile /tmp/users.acl" in script
    for name in ("users", "users.acl", "redis.conf"):
        # Mounted, and read there by another user than the one who checked the repository out.
        assert (ROOT / "ops/redis" / name).stat().st_mode & 0o044 == 0o044


def test_only_the_monitoring_pages_are_reached_from_outside_and_from_this_machine_alone(
    services: dict[str, Service],
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert not any("network_mode" in service for service in services.values())


def test_monitoring_shares_no_network_with_redis(compose: dict[str, Any], services: dict[str, Service]) -> None:
    assert services["redis"]["networks"] == ["data"]
    assert compose["networks"]["data"] == {"internal": True}
    for name in ("prometheus", "grafana"):
        assert services[name]["networks"] == ["monitoring"]
    for name in ("worker", "worker-gpu", "exporter"):
        assert {"data", "monitoring"} <= set(services[name]["networks"])
    assert {network for service in services.values() for network in service["networks"]} == set(compose["networks"])


def test_each_side_gets_its_own_password_as_a_file_and_no_other(
    compose: dict[str, Any], services: dict[str, Service]
) -> None:
    for names, side in ((WORKERS, "worker"), (("producer", "exporter"), "producer")):
        for name in names:
            assert services[name]["secrets"] == [f"redis_{side}"]
            environment = services[name]["environment"]
            assert environment["PROMPTMILL_REDIS_PASSWORD_FILE"] == f"/run/secrets/redis_{side}"
            assert environment["PROMPTMILL_REDIS_URL"] == f"redis://promptmill-{side}@redis:6379/0"
    assert services["grafana"]["secrets"] == ["grafana_admin"]
    assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_admin"
    assert {name: secret["file"] for name, secret in compose["secrets"].items()} == {
        name: f"./.secrets/{name}" for name in ("redis_producer", "redis_worker", "redis_admin", "grafana_admin")
    }


def test_every_service_runs_as_a_plain_user_on_a_read_only_root(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert service["pids_limit"] > 0, name


def test_every_service_rotates_its_log_and_has_limits_to_set(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name
        assert {"mem_limit", "cpus"} <= set(service), name


def test_long_running_services_say_whether_they_are_healthy(services: dict[str, Service]) -> None:
    redis_check = services["redis"]["healthcheck"]["test"][1]
    assert "redis-cli ping | grep -qx PONG" in redis_check
    assert "redis-cli -x AUTH promptmill-producer | grep -qx OK" in redis_check
    assert "healthcheck" in services["prometheus"]
    assert "healthcheck" in services["grafana"]
    for name in WORKERS:
        command = services[name]["command"]
        port = command[command.index("--metrics-port") + 1]
        assert re.search(rf'^HEALTHCHECK .*CMD \["health", "{port}"\]$', dockerfile("Dockerfile.worker"), re.MULTILINE)
    exporter = services["exporter"]
    port = exporter["command"][exporter["command"].index("--port") + 1]
    assert exporter["healthcheck"]["test"] == ["CMD", "health", port]
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
    assert device["count"] == "all"
    command = services["worker-gpu"]["command"]
    assert command[command.index("--devices") + 1] == "auto"
    assert services["worker-gpu"]["build"]["args"]["TORCH_INDEX_URL"].rpartition("/")[2].startswith("cu")
    assert services["worker"]["build"]["args"]["TORCH_INDEX_URL"].endswith("/cpu")
    assert services["worker-gpu"]["image"] != services["worker"]["image"]


def test_traces_go_where_the_usual_variables_say(services: dict[str, Service]) -> None:
    for name in OWN_SERVICES:
        assert {*_ASKED_BY, "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER"} <= set(services[name]["environment"])
        # Docker sets it for its own traces, to something else for each command.
        assert "OTEL_RESOURCE_ATTRIBUTES" not in services[name]["environment"]
    for name in DOCKERFILES:
        assert re.search(r"requirements\.py pyproject\.toml (worker )?otel >", dockerfile(name))


def test_with_a_redis_elsewhere_none_is_started_and_nobody_waits_for_it(services: dict[str, Service]) -> None:
    text = (ROOT / "ops/docker/redis-elsewhere.yml").read_text(encoding="utf-8")
    changed = yaml.safe_load(text.replace("!reset {}", "reset"))["services"]
    assert {name for name in services if name == "redis" or "redis" in services[name].get("depends_on", {})} == set(
        changed
    )
    assert changed.pop("redis") == "reset"
    for name, service in changed.items():
        assert service["depends_on"] == "reset"
        assert set(service) == {"depends_on", "environment"}
        side = "WORKER" if name in WORKERS else "PRODUCER"
        assert service["environment"] == {
            "PROMPTMILL_REDIS_URL": f"${{{side}_REDIS_URL:?is to name the Redis that is elsewhere}}"
        }


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker")
def test_compose_itself_takes_the_files() -> None:
    def config(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = ["docker", "compose", "--env-file", os.devnull, *flags, "config", "--services"]
        own = {name: value for name, value in os.environ.items() if "REDIS_URL" not in name}
        return subprocess.run(command, cwd=ROOT, env={**own, **env}, capture_output=True, text=True, check=False)

    asked = subprocess.run(["docker", "compose", "version", "--short"], capture_output=True, text=True, check=False)
    if (version := re.match(r"v?(\d+)\.(\d+)", asked.stdout)) is None or tuple(map(int, version.groups())) < (2, 24):
        pytest.skip("docker has no compose plugin of version 2.24")
    assert sorted(config().stdout.split()) == ["exporter", "redis", "worker"]
    elsewhere = ("-f", "docker-compose.yml", "-f", "ops/docker/redis-elsewhere.yml")
    assert "is to name the Redis that is elsewhere" in config(*elsewhere).stderr
    urls = {"WORKER_REDIS_URL": "rediss://w@h", "PRODUCER_REDIS_URL": "rediss://p@h"}
    assert sorted(config(*elsewhere, **urls).stdout.split()) == ["exporter", "worker"]


def test_every_side_gets_the_same_store(services: dict[str, Service]) -> None:
    for name in OWN_SERVICES:
        environment = services[name]["environment"]
        assert ("store", environment["PROMPTMILL_STORE"], False) in mounts(services[name])


def test_prometheus_scrapes_what_compose_runs(services: dict[str, Service]) -> None:
    assert ("./ops/monitoring", "/etc/prometheus", True) in mounts(services["prometheus"])
    text = (ROOT / "ops/monitoring/prometheus.yml").read_text(encoding="utf-8")
    assert "exporter:9464" in text
    assert "names: [worker, worker-gpu]" in text
    # A file beside it, in the folder that is mounted, and no part of the repository.
    (section,) = yaml.safe_load(text)["alerting"]["alertmanagers"]
    (file,) = section["file_sd_configs"][0]["files"]
    assert f"/ops/monitoring/{file}" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "port: 9465" in text


def test_grafana_finds_its_dashboard_and_its_source(services: dict[str, Service]) -> None:
    here = {target: source for source, target, _ in mounts(services["grafana"])}
    provisioning = ROOT / here["/etc/grafana/provisioning"]
    providers = yaml.safe_load((provisioning / "dashboards/promptmill.yml").read_text(encoding="utf-8"))["providers"]
    assert [here.get(provider["options"]["path"]) for provider in providers] == ["./ops/monitoring/grafana/dashboards"]
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert [source["url"] for source in sources] == ["http://prometheus:9090"]


def test_named_volumes_are_declared_and_host_paths_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for source, _, _ in mounts(service):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in compose["volumes"], source


def test_every_setting_of_compose_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    shown = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) <= shown

"""What ops/k8s holds is what Kubernetes takes, agrees with itself, and agrees with the programs that it starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from jobs.settings import Settings
from producer.cli.app import app as producer_app
from tests.manifests import (
    K8S,
    KUBECTL,
    ROOT,
    Object,
    containers,
    load,
    named,
    of_kind,
    pod_templates,
    port_names,
    rendered,
    selected,
    whole_files,
)
from worker.cli import app as worker_app

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl makes the overlays")

OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
#: Kinds that are not Kubernetes' own: their schemas are not at hand.
CUSTOM = ("ScaledObject", "PodMonitor")
#: The oldest Kubernetes that docs/kubernetes.md names, and the newest that there was.
VERSIONS = ("1.29", "1.37")
#: What ops/k8s/secrets makes.
SECRETS = {"redis-producer": "password", "redis-worker": "password", "redis-users": "users.acl"}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=needs_kubectl) for name in OVERLAYS])
def overlay(request: pytest.FixtureRequest) -> list[Object]:
    return rendered(K8S / "overlays" / request.param)


@pytest.fixture(scope="module", params=["files", *(pytest.param(name, marks=needs_kubectl) for name in OVERLAYS)])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """Of all files as they are, which takes no program, and of each overlay."""
    return whole_files() if request.param == "files" else rendered(K8S / "overlays" / request.param)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema_of_its_kind_and_has_no_field_beside(objects: list[Object], version: str) -> None:
    for document in objects:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


def test_every_pod_fits_the_restricted_pod_security_standard(objects: list[Object]) -> None:
    for template in pod_templates(objects):
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        sources = {key for volume in spec["volumes"] for key in volume if key != "name"}
        assert sources <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_no_pod_has_a_token_of_the_cluster_or_a_service_among_its_settings(objects: list[Object]) -> None:
    for template in pod_templates(objects):
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["enableServiceLinks"] is False


def test_every_container_says_what_memory_it_needs_and_may_take(objects: list[Object]) -> None:
    for container in containers(objects):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_every_container_can_write_to_tmp_and_mounts_volumes_that_its_pod_has(objects: list[Object]) -> None:
    for template in pod_templates(objects):
        claims = [claim["metadata"]["name"] for claim in _claim_templates(objects, template)]
        volumes = {volume["name"] for volume in template["spec"]["volumes"]} | set(claims)
        for container in template["spec"]["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts.keys() == volumes
            assert len(set(mounts.values())) == len(mounts)
            if container["name"] != "redis":
                assert mounts["tmp"] == "/tmp"


def _claim_templates(objects: list[Object], template: Object) -> list[Object]:
    owners = [
        document["spec"] for document in of_kind(objects, "StatefulSet") if document["spec"]["template"] is template
    ]
    return [claim for owner in owners for claim in owner["volumeClaimTemplates"]]


def test_probes_ask_ports_that_their_container_has(objects: list[Object]) -> None:
    asked = 0
    for container in containers(objects):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "httpGet" in container.get(probe, {}):
                request = container[probe]["httpGet"]
                assert request["port"] in {port["name"] for port in container["ports"]}
                assert request["path"] in ("/healthz", "/readyz")
                asked += 1
    assert asked >= 6


def test_the_port_of_the_metrics_is_the_one_that_the_container_declares(objects: list[Object]) -> None:
    for container in containers(objects):
        flags = [argument for argument in container.get("args", []) if re.match(r"--(metrics-)?port=", argument)]
        declared = [str(port["containerPort"]) for port in container.get("ports", []) if port["name"] == "metrics"]
        assert [flag.partition("=")[2] for flag in flags] == declared


def test_arguments_are_taken_by_the_program_that_gets_them(objects: list[Object]) -> None:
    programs = {"promptmill-worker": worker_app, "promptmill-producer": producer_app}
    for container in containers(objects):
        image = container["image"].partition(":")[0].rpartition("/")[2]
        if "args" in container:
            program: Any = typer.main.get_command(programs[image.removesuffix("-cuda")])
            name, *arguments = container["args"]
            # Parses and checks the values, and runs nothing. Raises UsageError.
            assert program.commands[name].make_context(name, arguments)


def test_variables_are_settings_that_exist(objects: list[Object]) -> None:
    known = {f"PROMPTMILL_{name.upper()}" for name in Settings.model_fields}
    names = {variable["name"] for container in containers(objects) for variable in container.get("env", [])}
    names |= {key for document in of_kind(objects, "ConfigMap") for key in document["data"]}
    assert {name for name in names if name.startswith("PROMPTMILL_")} <= known


def test_a_worker_is_not_killed_before_it_has_handed_back_its_batches(objects: list[Object]) -> None:
    for template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            graces = [int(a.partition("=")[2]) for a in container.get("args", []) if a.startswith("--grace=")]
            assert all(template["spec"]["terminationGracePeriodSeconds"] >= grace + 30 for grace in graces)
            assert graces or container["name"] != "worker"


def test_what_pods_refer_to_is_there(overlay: list[Object]) -> None:
    for template in pod_templates(overlay):
        spec = template["spec"]
        assert spec.get("serviceAccountName", "default") in named(overlay, "ServiceAccount") | {"default"}
        for volume in spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in named(overlay, "PersistentVolumeClaim")
            if "configMap" in volume:
                assert volume["configMap"]["name"] in named(overlay, "ConfigMap")
            if "secret" in volume:
                assert volume["secret"]["secretName"] in SECRETS
    for container in containers(overlay):
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in named(overlay, "ConfigMap")
            else:
                assert source["secretRef"]["optional"] is True
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
                (settings,) = [d for d in of_kind(overlay, "ConfigMap") if d["metadata"]["name"] == reference["name"]]
                assert reference["key"] in settings["data"]


def test_every_file_of_a_secret_that_is_named_is_mounted(overlay: list[Object]) -> None:
    for template in pod_templates(overlay):
        secrets = {v["name"]: v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v}
        for container in template["spec"]["containers"]:
            files = {
                f"{mount['mountPath']}/{SECRETS[secrets[mount['name']]]}"
                for mount in container["volumeMounts"]
                if mount["name"] in secrets
            }
            words = [*container.get("command", []), *(v.get("value", "") for v in container.get("env", []))]
            assert files
            assert files <= set(words)


def test_selectors_take_the_pods_that_they_are_for(overlay: list[Object]) -> None:
    templates = pod_templates(overlay)
    for owner in of_kind(overlay, "Deployment", "StatefulSet"):
        assert selected(templates, owner["spec"]["selector"]) == [owner["spec"]["template"]]
        for spread in owner["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert selected(templates, spread["labelSelector"]) == [owner["spec"]["template"]]
    for service in of_kind(overlay, "Service"):
        (template,) = selected(templates, {"matchLabels": service["spec"]["selector"]})
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names(template)
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        (template,) = selected(templates, budget["spec"]["selector"])
        assert template["spec"]["containers"][0]["name"] == "worker"
    for monitor in of_kind(overlay, "PodMonitor"):
        scraped = selected(templates, monitor["spec"]["selector"])
        ports = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        assert scraped
        assert all(ports <= port_names(template) for template in scraped)


def test_network_policies_open_ports_that_pods_have(overlay: list[Object]) -> None:
    templates = pod_templates(overlay)
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(overlay, "NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        inside = selected(templates, spec["podSelector"])
        assert inside
        for rule in spec.get("ingress", []):
            assert all(port["port"] in port_names(t) | _numbers(t) for port in rule["ports"] for t in inside)
        for rule in spec.get("egress", []):
            assert rule["ports"]
            assert all(selected(templates, to["podSelector"]) for to in rule["to"] if "podSelector" in to)
    reach_redis = selected(templates, policies["redis-out"]["podSelector"])
    logs_in = [
        t for t in templates if any(v.get("secret", {}).get("secretName") in SECRETS for v in t["spec"]["volumes"])
    ]
    assert reach_redis == [t for t in logs_in if t["spec"]["containers"][0]["name"] != "redis"]


def _variables(template: Object) -> set[str]:
    return {variable["name"] for c in template["spec"]["containers"] for variable in c.get("env", [])}


def _numbers(template: Object) -> set[int]:
    return {port["containerPort"] for c in template["spec"]["containers"] for port in c.get("ports", [])}


def _models(overlay: list[Object]) -> dict[str, str]:
    """Deployment: the name that jobs ask for."""
    return {
        deployment["metadata"]["name"]: argument.split("=")[1]
        for deployment in of_kind(overlay, "Deployment")
        for argument in deployment["spec"]["template"]["spec"]["containers"][0].get("args", [])
        if argument.startswith("--model=") and deployment["metadata"]["name"] != "exporter"
    }


def test_the_exporter_is_told_of_every_model(overlay: list[Object]) -> None:
    (exporter,) = [d for d in of_kind(overlay, "Deployment") if d["metadata"]["name"] == "exporter"]
    arguments = exporter["spec"]["template"]["spec"]["containers"][0]["args"]
    told = [argument.partition("=")[2] for argument in arguments if argument.startswith("--model=")]
    assert sorted(told) == sorted(_models(overlay).values())


def test_a_model_scales_with_its_own_backlog_as_the_exporter_serves_it(overlay: list[Object]) -> None:
    (exporter,) = [service for service in of_kind(overlay, "Service") if service["metadata"]["name"] == "exporter"]
    host = f"exporter.{exporter['metadata']['namespace']}.svc:{exporter['spec']['ports'][0]['port']}"
    for scaled in of_kind(overlay, "ScaledObject"):
        (trigger,) = scaled["spec"]["triggers"]
        model = _models(overlay)[scaled["spec"]["scaleTargetRef"]["name"]]
        assert trigger["metadata"]["url"] == f"http://{host}/metrics"
        assert trigger["metadata"]["valueLocation"] == f'promptmill_backlog_batches{{model="{model}"}}'
        assert trigger["metadata"]["activationTargetValue"] == "0"
        assert scaled["spec"]["minReplicaCount"] == 0
        assert isinstance(scaled["spec"]["maxReplicaCount"], int)


@needs_kubectl
def test_a_model_is_one_folder(tmp_path: Path) -> None:
    # Without what Python writes there, in whichever process, while it is copied.
    shutil.copytree(ROOT / "ops", tmp_path / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    gpu = tmp_path / "ops" / "k8s" / "overlays" / "gpu"
    shutil.copytree(gpu / "qwen3-8b", gpu / "mine")
    folder = gpu / "mine" / "kustomization.yaml"
    values = {"NAME": "my-own", "MODEL": "My_Own.v2", "SOURCE": "/var/lib/promptmill/models/a=b", "MAX_WORKERS": "3"}
    text = folder.read_text()
    for key, value in values.items():
        text = re.sub(rf"- {key}=.*", f"- {key}={value}", text)
    folder.write_text(text)
    overlay = gpu / "kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("  - qwen3-8b\n", "  - qwen3-8b\n  - mine\n"))

    before, after = (rendered(root / "k8s" / "overlays" / "gpu") for root in (ROOT / "ops", tmp_path / "ops"))

    added = [document for document in after if document not in before]
    assert [document for document in before if document not in after] == []
    assert {(document["kind"], document["metadata"]["name"]) for document in added} == {
        (kind, "worker-my-own") for kind in ("Deployment", "PodDisruptionBudget", "ScaledObject")
    }
    (deployment,) = of_kind(added, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--model=My_Own.v2=/var/lib/promptmill/models/a=b" in container["args"]
    (scaled,) = of_kind(added, "ScaledObject")
    assert scaled["spec"]["maxReplicaCount"] == 3
    assert scaled["spec"]["triggers"][0]["metadata"]["valueLocation"] == 'promptmill_backlog_batches{model="My_Own.v2"}'
    assert "NAME" not in yaml.safe_dump(added)


def test_the_model_of_the_docs_is_that_of_the_overlay() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert shown == (K8S / "overlays" / "gpu" / "qwen3-0.6b" / "kustomization.yaml").read_text(encoding="utf-8")


def test_the_secrets_are_made_once_and_have_what_the_pods_mount(tmp_path: Path) -> None:
    def made() -> str:
        environment = {**os.environ, "SECRETS_DIR": str(tmp_path / "secrets")}
        return subprocess.run(
            [K8S / "secrets", "elsewhere"], env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    first = made()
    assert made() == first
    secrets = load(first)
    assert {s["metadata"]["name"]: [*s["data"]] for s in secrets} == {name: [key] for name, key in SECRETS.items()}
    for secret in secrets:
        kubernetes_validate.validate(secret, VERSIONS[-1], strict=True)
        assert secret["metadata"]["namespace"] == "elsewhere"


def test_what_cannot_be_a_namespace_is_refused_before_a_password_is_made(tmp_path: Path) -> None:
    environment = {**os.environ, "SECRETS_DIR": str(tmp_path / "secrets")}
    done = subprocess.run([K8S / "secrets", "Not: one"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Not: one cannot be the name of a namespace")
    assert not (tmp_path / "secrets").exists()


def test_the_rules_of_the_prometheus_operator_are_the_alerts() -> None:
    done = subprocess.run([K8S / "prometheus-rule"], stdout=subprocess.PIPE, text=True, check=True)
    (rule,) = load(done.stdout)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == yaml.safe_load((ROOT / "ops" / "monitoring" / "alerts.yml").read_text(encoding="utf-8"))

"""Reads what ops/k8s has: its files as they are, and its overlays as kubectl makes them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
K8S = ROOT / "ops" / "k8s"
KUBECTL = shutil.which("kubectl")

#: An object as Kubernetes takes it.
Object = dict[str, Any]


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice, as `kubectl apply` does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        if len(set(keys)) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text: str) -> list[Object]:
    return [document for document in yaml.load_all(text, StrictLoader) if document]


def rendered(overlay: Path) -> list[Object]:
    """What `kubectl apply -k` would send."""
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load(done.stdout)


def whole_files() -> list[Object]:
    """The objects of all files that hold whole ones: no kustomization, no patch. Names are those before kustomize."""
    files = (path for path in K8S.rglob("*.yaml") if path.name not in ("kustomization.yaml", "gpu.yaml"))
    objects = [document for path in sorted(files) for document in load(path.read_text(encoding="utf-8"))]
    return [document for document in objects if document["kind"] != "Kustomization"]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [document for document in objects if document["kind"] in kinds]


def named(objects: list[Object], kind: str) -> set[str]:
    return {document["metadata"]["name"] for document in of_kind(objects, kind)}


def pod_templates(objects: list[Object]) -> list[Object]:
    return [document["spec"]["template"] for document in of_kind(objects, "Deployment", "StatefulSet", "Job")]


def containers(objects: list[Object]) -> Iterator[Object]:
    for template in pod_templates(objects):
        yield from template["spec"].get("initContainers", [])
        yield from template["spec"]["containers"]


def selected(templates: list[Object], selector: Object) -> list[Object]:
    """The pods that a label selector takes."""
    return [template for template in templates if _takes(selector, template["metadata"]["labels"])]


def _takes(selector: Object, labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True


def port_names(template: Object) -> set[str]:
    return {port["name"] for container in template["spec"]["containers"] for port in container.get("ports", [])}

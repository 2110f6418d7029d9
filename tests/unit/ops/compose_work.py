"""Where the files of the containers are, and what a service of compose says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILES = ("Dockerfile.producer", "Dockerfile.worker")
OWN_SERVICES = ("worker", "worker-gpu", "producer", "exporter")
WORKERS = ("worker", "worker-gpu")
#: A setting in the compose file, and what it is where nobody gives it.
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")

Service = dict[str, Any]


def dockerfile(name: str) -> str:
    return (ROOT / "ops/docker" / name).read_text(encoding="utf-8")


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

"""What the shell offers when people press Tab. Nothing here may fail, wait for a network, or print."""

from __future__ import annotations

import glob
import os
from typing import Any

#: Ids that are offered at most: more say nothing, and a store may have very many jobs.
_MOST = 200


def complete_job(ctx: Any, incomplete: str) -> list[str]:
    """The ids of jobs in a store on this machine's disk."""
    # Imported late: a shell asks for other words too.
    from pathlib import Path

    from jobs import layout
    from jobs.settings import Settings

    try:
        place = ctx.params.get("store") or Settings.load().store
        folder = Path(os.path.expanduser(place.removeprefix("file://")), layout.JOBS)
        found = (layout.job_of_file(f"{layout.JOBS}/{entry.name}") for entry in folder.iterdir())
        return sorted(name for name in found if name and name.startswith(incomplete))[:_MOST]
    except Exception:
        return []


def complete_source(incomplete: str) -> list[str]:
    """Files and folders, as the shell itself would offer them."""
    found = sorted(glob.glob(f"{glob.escape(os.path.expanduser(incomplete))}*"))
    return [f"{path}/" if os.path.isdir(path) else path for path in found]


def complete_format(incomplete: str) -> list[str]:
    """The formats of sources."""
    from producer.sources.formats import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def complete_export(incomplete: str) -> list[str]:
    """The formats of results."""
    from producer.export import FORMATS

    return [form for form in FORMATS if form.startswith(incomplete)]

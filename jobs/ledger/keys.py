"""The name of every Redis key that the ledger uses. The Lua scripts build theirs from this same table."""

from __future__ import annotations

from jobs.job_file import JOB_VERSIONS

#: Raised whenever keys, or what the scripts write into them, change so that programs of another version would misread
#: them. Each layout has keys of its own, and the store brings its jobs into them: see Ledger.connect.
LAYOUT = 1

#: What follows the prefix of a store, by the name that code uses. ``{}`` is a job, a model and so on.
TEMPLATES = {
    # One each.
    "epoch": "epoch",
    "run_id": "run_id",
    "live": "live",
    "ended": "ended",
    "leases": "leases",
    "deadlines": "deadlines",
    "models": "models",
    "sweeping": "sweeping",
    "recovering": "recovering",
    "workers": "workers",
    "worker": "worker:{}",
    # For each model.
    # By the version of the job's file too: a worker looks only where it can read.
    "unpinned": "unpinned:{}:{}",
    "pinned": "pinned:{}:{}:{}",
    "due": "due:{}:{}",
    "vtime": "vtime:{}",
    "shown": "shown:{}",
    # For each job.
    "job": "job:{}",
    "job_returned": "job:{}:returned",
    "job_done": "job:{}:done",
    "job_leases": "job:{}:leases",
    "job_attempts": "job:{}:attempts",
    "job_errors": "job:{}:errors",
    "job_suspects": "job:{}:suspects",
}

#: Hash of store id -> URI, shared by all stores of a Redis: how a look into the wrong store is explained.
STORES = "promptmill:stores"


def prefix(store_id: str) -> str:
    """What every other key begins with: stores that share a Redis never meet, nor do layouts."""
    return f"promptmill:{store_id}:" if LAYOUT == 1 else f"promptmill:{store_id}:layout-{LAYOUT}:"


def layout(store_id: str) -> str:
    """The one key that all layouts share: a string, the newest layout that a worker of this store had."""
    return f"promptmill:{store_id}:layout"


def key(store_id: str, name: str, *parts: str) -> str:
    """The key that TEMPLATES calls ``name``."""
    return prefix(store_id) + TEMPLATES[name].format(*parts)


def lua_table() -> str:
    """TEMPLATES as a Lua table of ``string.format`` patterns, and READS: the job versions that this program reads."""
    entries = (f"{name}='{template.replace('{}', '%s')}'" for name, template in TEMPLATES.items())
    return "local TEMPLATES={" + ",".join(entries) + "}\nlocal READS={" + ",".join(map(str, JOB_VERSIONS)) + "}"

"""The settings that both sides share, read once at the edge and passed down frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.errors import InputError
from jobs.layout import LOCAL_FILE

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


class Settings(BaseSettings):
    """Environment variables with the prefix ``PROMPTMILL_``, also from ``.env`` in the current folder."""

    model_config = SettingsConfigDict(env_prefix="PROMPTMILL_", env_file=".env", extra="ignore", frozen=True)

    #: Unset: the address that a local ``run`` left in the store, else DEFAULT_REDIS_URL.
    redis_url: str | None = None
    #: A folder, or a URI: ``s3://bucket/prefix``, ``gs://``, ``az://``, ``memory://``.
    store: str = "./promptmill-data"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    #: Seconds that a claimed batch stays with its worker without a heartbeat.
    lease_s: float = Field(default=60.0, ge=1.0, le=86_400.0)
    #: Seconds between two rounds of upkeep in one process.
    sweep_s: float = Field(default=5.0, ge=0.1, le=3_600.0)
    #: Seconds without a step of the engine, rows in hand, after which a worker process ends itself; after half of them
    #: its leases may expire. The longest step of the slowest machine has to be shorter.
    stall_s: float = Field(default=300.0, ge=1.0, le=86_400.0)
    #: MiB that the disk of a local store must have free for workers to take on more.
    min_free_mb: float = Field(default=256.0, ge=0.0)

    @classmethod
    def load(cls, **overrides: object) -> Settings:
        """The settings of this process; ``overrides`` that are not None win over the environment.

        Raises InputError where a value is not what its field allows.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            name = "PROMPTMILL_" + "_".join(str(part) for part in first["loc"]).upper()
            raise InputError(f"{name}: {first['msg']} (got {first['input']!r})") from error
        except UnicodeDecodeError as error:
            raise InputError("the file .env in this folder is not UTF-8: mend it, or start elsewhere") from error

    @property
    def redis(self) -> str:
        """The Redis URL to use: as set, else as a local run left it, else the default."""
        return self.redis_url or self._local_redis_url() or DEFAULT_REDIS_URL

    def _local_redis_url(self) -> str | None:
        folder = self.store.removeprefix("file://")
        if "://" in folder:
            return None
        try:
            content = json.loads((Path(folder).expanduser() / LOCAL_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        url = content.get("redis_url") if isinstance(content, dict) else None
        return url if isinstance(url, str) else None

"""The settings that both sides share, read once at the edge and passed down frozen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.errors import InputError
from jobs.layout import LOCAL_FILE, STORE_ID
from jobs.secret_files import RedisFiles, UrlFromFiles, has_password

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


class Settings(BaseSettings):
    """Environment variables with the prefix ``PROMPTMILL_``, also from ``.env`` in the current folder."""

    model_config = SettingsConfigDict(env_prefix="PROMPTMILL_", env_file=".env", extra="ignore", frozen=True)

    #: Unset: the address that a local ``run`` left in the store, else DEFAULT_REDIS_URL. Not shown: it may hold a
    #: password.
    redis_url: str | None = Field(default=None, repr=False)
    #: A file whose first line is the URL, or the password that goes into it; ``load`` puts both into ``redis_url``,
    #: which then is a UrlFromFiles.
    redis_url_file: str | None = None
    redis_password_file: str | None = None
    #: A folder, or a URI: ``s3://bucket/prefix``, ``gs://``, ``az://``, ``memory://``.
    store: str = "./promptmill-data"
    #: The id of the store that has to be there. Unset: whichever is, and where there is none a new one may be founded.
    store_id: str | None = None
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
    min_free_mb: float = Field(default=256.0, ge=0.0, allow_inf_nan=False)
    #: What a worker may load: patterns of folders and hub ids, separated by commas. Unset: anything.
    allowed_models: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object, info: ValidationInfo) -> object:
        """Compose and the like cannot leave a variable out: they hand on an empty one."""
        return cls.model_fields[str(info.field_name)].default if value == "" else value

    @field_validator("store_id")
    @classmethod
    def _is_an_id(cls, value: str | None) -> str | None:
        if value is not None and not STORE_ID.fullmatch(value):
            raise PydanticCustomError(
                "store_id", "a store's id is 16 digits of 0-9 and a-f; `promptmill doctor` shows it"
            )
        return value

    @classmethod
    def load(cls, **overrides: object) -> Settings:
        """The settings of this process; ``overrides`` that are not None win over the environment.

        Files of secrets are read now, and again for each connection. Raises InputError where a value is not what its
        field allows, or a file cannot be read.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            settings = cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            name = "PROMPTMILL_" + "_".join(str(part) for part in first["loc"]).upper()
            raise InputError(f"{name}: {first['msg']} (got {first['input']!r})") from error
        except UnicodeDecodeError as error:
            raise InputError("the file .env in this folder is not UTF-8: mend it, or start elsewhere") from error
        return settings._with_secrets(named=bool(given.get("redis_url")))

    def _with_secrets(self, *, named: bool) -> Settings:
        """With the URL and the password that are in files. A URL ``named`` by a flag wins over that of the environment,
        its password over the file's. Raises InputError.
        """
        url_file, password_file = None if named else self.redis_url_file, self.redis_password_file
        if url_file is not None and self.redis_url is not None:
            raise InputError("PROMPTMILL_REDIS_URL and PROMPTMILL_REDIS_URL_FILE are both set: unset one of them")
        if named and self.redis_url is not None and has_password(self.redis_url):
            password_file = None
        if url_file is None and password_file is None:
            return self
        files = RedisFiles(self.redis_url or DEFAULT_REDIS_URL, url_file, password_file)
        return self.model_copy(update={"redis_url": UrlFromFiles.read(files)})

    @property
    def redis(self) -> str:
        """The Redis URL to use: as set, else as a local run left it, else the default."""
        return self.redis_url or self._local_redis_url() or DEFAULT_REDIS_URL

    def _local_redis_url(self) -> str | None:
        folder = self.store.removeprefix("file://")
        if "://" in folder:
            return None
        try:
            content = json.loads(Path(os.path.expanduser(folder), LOCAL_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        url = content.get("redis_url") if isinstance(content, dict) else None
        return url if isinstance(url, str) else None

"""A store, the ledger of that store, and permits on the same server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RedisServer


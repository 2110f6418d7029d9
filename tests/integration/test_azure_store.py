"""The store on Azure Blob Storage: run against Azurite, Microsoft's emulator, where `azurite-blob` is installed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from jobs.finalize import finalize
from jobs.spec import Status
from jobs.store import Store
from tests.job_work import accept_job, dataset, run_batches

AZURITE = shutil.which("azurite-blob")
#: The emulator's own, the same everywhere; and its port, for which clients look.
ACCOUNT, PORT = "devstoreaccount1", 10000
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

pytestmark = pytest.mark.skipif(AZURITE is None, reason="azurite-blob is not installed (npm install -g azurite)")


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an empty container."""
    folder = tmp_path_factory.mktemp("azurite")
    command = [str(AZURITE), "--silent", "--blobPort", str(PORT), "--location", str(folder), "--skipApiVersionCheck"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                    break
            time.sleep(0.2)
        create_container("mill")
        yield "az://mill"
    finally:
        server.terminate()
        server.wait()


def create_container(name: str) -> None:
    """By the REST protocol's Shared Key: https://learn.microsoft.com/rest/api/storageservices/."""
    date, version = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "2021-08-06"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    to_sign = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    digest = hmac.new(base64.b64decode(KEY), to_sign.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date, "x-ms-version": version, "Content-Length": "0",
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
    }  # fmt: skip
    url = f"http://127.0.0.1:{PORT}/{ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)).close()


@pytest.fixture
def store(container: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    for name, value in {
        "AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_ALLOW_HTTP": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return Store.open(f"{container}/{abs(hash(request.node.name))}", create=True)


def test_put_if_absent_holds_and_of_24_writers_exactly_one_wins(store: Store) -> None:
    store.probe()
    with ThreadPoolExecutor(24) as pool:
        won = list(pool.map(lambda index: store.put_if_absent("data/s1/a", b"%d" % index), range(24)))
    assert won.count(True) == 1
    assert store.get("data/s1/a") == b"%d" % won.index(True)


def test_a_whole_job_ends_as_on_a_disk(store: Store) -> None:
    assert Store.open(store.uri).id == store.id
    job = accept_job(store)
    run_batches(store, job)
    assert finalize(store, job, Status.COMPLETED).completed == 10
    assert dataset(store, job.id).column("row_index").to_pylist() == list(range(10))
    assert [item.path for item in store.list("data") if "/parts/" in item.path] == []

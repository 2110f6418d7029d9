"""Steps of ops/bootstrap that must find packages where pip would: the machine's own index or mirror.

``installer.py pip`` puts pip into a virtual environment that was made without it. Debian and its
relatives ship Python without ``ensurepip``, so ``python3 -m venv`` cannot do it there. Where an index is
configured, pip's wheel is fetched from it and installs itself; else the system's own package of the wheel is
taken, which needs no root; else get-pip.py does it.

``installer.py uv ARGUMENTS`` runs uv with pip's settings. uv does not read them by itself, so on a
machine that reaches packages only through a configured mirror it would find nothing.

``installer.py answers URL`` exits with 1 if nobody answers there within some seconds.

Run by the environment's own Python; needs nothing but the standard library.
"""

import configparser
import contextlib
import hashlib
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

#: pip's own installer for a Python without ensurepip (pip's "Installation" page).
GET_PIP = "https://bootstrap.pypa.io/get-pip.py"
#: Seconds without an answer after which the index counts as unreachable.
TIMEOUT_S = 60
#: The same for an index that installing can do without.
ANSWER_S = 10
_WHEEL = re.compile(r"/pip-(\d+(?:\.\d+)*)-py3-none-any\.whl$")


def config_files() -> list[Path]:
    """pip's configuration files, lowest precedence first (pip's "Configuration" page)."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:  # pip's way to say "no configuration files at all"
        return []
    home = Path.home()
    shared = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    own = os.environ.get("XDG_CONFIG_HOME") or home / ".config"
    files = [*(Path(folder, "pip/pip.conf") for folder in reversed(shared)), Path("/etc/pip.conf")]
    files += [home / "Library/Application Support/pip/pip.conf", home / ".pip/pip.conf"]
    files += [Path(own, "pip/pip.conf"), Path(sys.prefix, "pip.conf")]
    return [*files, Path(named)] if named else files


def pip_setting(name: str) -> str | None:
    """A setting as pip would see it for ``pip install``, or None."""
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if from_environment:
        return from_environment
    parser = configparser.RawConfigParser()
    parser.read(config_files())
    for section in ("install", "global"):
        if value := parser.get(section, name, fallback=None):
            return value
    return None


class _Links(HTMLParser):
    """The links of a simple index page (PEP 503) that this Python may use."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        needs = re.search(r">=\s*3\.(\d+)", found.get("data-requires-python") or "")
        too_old = needs is not None and sys.version_info < (3, int(needs[1]))
        if tag == "a" and found.get("href") and not too_old and "data-yanked" not in found:
            self.urls.append(found["href"] or "")


def newest_wheel(index: str, context: ssl.SSLContext) -> str:
    """The address of the newest final release of pip in the index at ``index``."""
    page = index.rstrip("/") + "/pip/"
    request = urllib.request.Request(page, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
        links = _Links()
        links.feed(answer.read().decode())
        base: str = answer.url
    found = [(match[1], url) for url in links.urls if (match := _WHEEL.search("/" + url.partition("#")[0]))]
    if not found:
        raise SystemExit(f"installer: no wheel of pip at {page}")
    _, url = max(found, key=lambda item: [int(part) for part in item[0].split(".")])
    return urllib.parse.urljoin(base, url)


def download(url: str, folder: Path, context: ssl.SSLContext) -> Path:
    """Fetches ``url`` into ``folder`` and checks it against the digest in it, if the index gave one."""
    address, _, fragment = url.partition("#")
    with urllib.request.urlopen(address, timeout=TIMEOUT_S, context=context) as answer:
        content: bytes = answer.read()
    algorithm, _, digest = fragment.partition("=")
    if algorithm == "sha256" and hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"installer: {address} is not what the index says it is (sha256 differs)")
    file = folder / address.rpartition("/")[2]
    file.write_bytes(content)
    return file


def system_wheel(folder: Path) -> Path | None:
    """pip's wheel as Debian and its relatives package it: the one that is there, or fetched by apt. None elsewhere."""
    place = "usr/share/python-wheels"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if not list(Path("/", place).glob("pip-*.whl")):
            subprocess.run(["apt-get", "download", "python3-pip-whl"], cwd=folder, check=True)
            package = next(folder.glob("*.deb"), folder / "none.deb")
            subprocess.run(["dpkg", "-x", package, folder], check=True)
    found = [*Path("/", place).glob("pip-*.whl"), *(folder / place).glob("pip-*.whl")]
    return found[0] if found else None


def install_wheel(wheel: Path) -> int:
    """Has a wheel of pip install itself: it is a zip file, and Python runs a package inside one."""
    command = [sys.executable, f"{wheel}/pip", "install", "--no-index", "--no-deps", str(wheel)]
    return subprocess.run(command, check=False).returncode


def install_pip() -> int:
    """Installs the newest pip into the environment that runs this; the installer's exit code."""
    context = ssl.create_default_context(cafile=pip_setting("cert"))
    index = pip_setting("index-url")
    with tempfile.TemporaryDirectory() as folder:
        try:
            if index is None and (packaged := system_wheel(Path(folder))) is not None:
                return install_wheel(packaged)
            if index is None:
                script = download(GET_PIP, Path(folder), context)
                return subprocess.run([sys.executable, str(script), "pip"], check=False).returncode
            wheel = download(newest_wheel(index, context), Path(folder), context)
        except OSError as error:
            raise SystemExit(f"installer: cannot fetch pip from {index or GET_PIP}: {error}") from None
        return install_wheel(wheel)


def answers(url: str) -> bool:
    """Whether anybody answers at ``url``, through pip's proxy; what the answer is, is for pip to judge."""
    proxy = pip_setting("proxy")
    # Without an argument it reads the environment, as pip does.
    proxies = urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else None)
    try:
        context = ssl.create_default_context(cafile=pip_setting("cert"))
        opener = urllib.request.build_opener(proxies, urllib.request.HTTPSHandler(context=context))
        opener.open(url, timeout=ANSWER_S).close()
    except urllib.error.HTTPError as refusal:
        refusal.close()
    except OSError as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
            print(f"installer: {url}: {error}", file=sys.stderr)
            return False
    return True


def uv_environment() -> dict[str, str]:
    """uv's variables for pip's settings (uv's "Environment variables" page); a variable already set wins."""
    settings = {
        "UV_DEFAULT_INDEX": pip_setting("index-url"),
        "UV_INDEX": " ".join((pip_setting("extra-index-url") or "").split()),
        "UV_FIND_LINKS": ",".join((pip_setting("find-links") or "").split()),
        "UV_INSECURE_HOST": " ".join((pip_setting("trusted-host") or "").split()),
        "SSL_CERT_FILE": pip_setting("cert"),
    }
    if settings["UV_INDEX"]:
        # pip takes the best version of all indexes; uv would stop at the first one that has the name.
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {name: value for name, value in settings.items() if value} | dict(os.environ)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["pip"]:
            return install_pip()
        case ["uv", *rest]:
            uv = Path(sys.executable).with_name("uv")
            return subprocess.run([uv, *rest], env=uv_environment(), check=False).returncode
        case ["answers", url]:
            return 0 if answers(url) else 1
        case _:
            print("usage: installer.py pip | installer.py uv ARGUMENTS | installer.py answers URL", file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

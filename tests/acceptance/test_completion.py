"""What the shell offers when people press Tab, asked for as bash asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.mill import Mill


def offered(mill: Mill, line: str, **env: str) -> list[str]:
    """The words that are offered for the last word of ``line``."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_PROMPTMILL_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'promptmill'; from producer.cli import main; main()"],
        env={**mill.environment, **asked, **env}, cwd=mill.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(scope="module")
def job(mill: Mill) -> str:
    done = mill.call("submit", mill.prompts("completed", 1), "--model", "nobody", "--job-id", "tabbed-one").ok()
    return done.out.strip()


def test_commands_options_and_formats_are_offered(mill: Mill) -> None:
    assert set(offered(mill, "promptmill re")) == {"recover", "report", "resume", "retry", "results"}
    assert "--prompt-column" in offered(mill, "promptmill check x --prompt")
    assert set(offered(mill, "promptmill check x --format j")) == {"jsonl", "json"}
    assert set(offered(mill, "promptmill results x --format o")) == {"openai"}


def test_files_and_folders_are_offered_as_sources(mill: Mill) -> None:
    mill.write("tab-file.csv", "prompt\na\n")
    os.makedirs(mill.folder / "tab-folder", exist_ok=True)
    assert set(offered(mill, "promptmill check tab-f")) == {"tab-file.csv", "tab-folder/"}


@pytest.mark.parametrize("command", ["watch", "retry"])
def test_jobs_of_the_store_are_offered(mill: Mill, job: str, command: str) -> None:
    assert offered(mill, f"promptmill {command} tab") == [job]


def test_no_store_is_nothing_to_offer_and_no_reason_to_complain(mill: Mill) -> None:
    assert offered(mill, "promptmill status x", PROMPTMILL_STORE="/nowhere") == []
    assert offered(mill, "promptmill status x", PROMPTMILL_STORE="s3://bucket") == []
    assert offered(mill, "promptmill status x", PROMPTMILL_LEASE_S="soon") == []

"""Small jobs for the tests of commands, and the commands that take one."""

from __future__ import annotations

from tests.mill import Mill

#: Each takes the id of a job.
COMMANDS = ("status", "watch", "results", "cancel", "pause", "resume", "recover", "retry", "delete")


def submit(mill: Mill, name: str, count: int = 20, *flags: str, model: str = "tiny") -> str:
    """A job of ``count`` prompts that say its name; its id."""
    arguments = ("submit", mill.prompts(name, count), "--model", model, "--max-tokens", "4", "--batch-size", "5")
    return mill.call(*arguments, *flags).ok().out.strip()

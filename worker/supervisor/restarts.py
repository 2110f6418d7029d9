"""When a process that has ended is started again, and when the supervisor gives up."""

from __future__ import annotations

from collections.abc import Sequence

#: The exit status of what is wrong with the command line, the settings or the model: it is wrong the next time, too.
EXIT_USAGE = 2

#: Seconds that a process has to run for its end not to count as one more failure in a row.
RAN_WELL_S = 60.0
#: Seconds between an end and the next start, at most.
LONGEST_S = 60.0


def failures_after(failures: int, ran_s: float) -> int:
    """How many ends in a row came too soon, after one that came after ``ran_s``."""
    return 0 if ran_s >= RAN_WELL_S else failures + 1


def back_off_s(failures: int, status: int, chance: float) -> float:
    """Seconds until the next start: 1, 2, 4, ... 60, of which ``chance`` (0 to 1) takes up to a half.

    Without chance the processes that a fault ended together would all load their models at the same time, again and
    again. What is wrong with the command line is not mended within seconds.
    """
    longest = LONGEST_S if status == EXIT_USAGE else min(2.0 ** min(failures, 10), LONGEST_S)
    return longest * (1.0 - chance / 2)


def gives_up(last_statuses: Sequence[int | None], ever_registered: bool) -> bool:
    """Whether there is nothing to wait for: no process ever served, and each has ended for what only people can mend.

    One device that is broken is no reason, nor is a Redis that is away.
    """
    return not ever_registered and all(status == EXIT_USAGE for status in last_statuses)

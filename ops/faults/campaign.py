"""Jobs under fire: workers, Redis, connections and files are killed, stopped, cut and damaged while they run.

One thread does everything, a little of each at a time: it keeps the workers alive, jobs coming and faults happening,
and looks at what is published. At the end the faults stop, the jobs have to come to theirs, and the store is checked.
"""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from statistics import median
from typing import Any

from jobs.errors import PromptmillError
from jobs.spec import now
from jobs.stages import clean_up
from ops.faults.checker import Work, check_store
from ops.faults.site import Site
from ops.faults.strikes import FAULTS
from tests.patience import wait_until

#: Seconds that the jobs have to end once no fault happens any more.
_END_S = 300.0


class Campaign(Site):
    """Faults on a site for a while, and what came of it."""

    def run(self, seconds: float, kills: int = 0) -> dict[str, Any]:
        """Faults for so long, and until so many workers were killed; then what came of it."""
        started = time.monotonic()
        next_fault = next_look = started + 5
        told = 0
        while time.monotonic() < started + seconds or self.kills < kills:
            now = time.monotonic()
            self.supervise()
            self.orders.keep_coming()
            self._end_disturbances()
            self.watch_orphans()
            if now >= next_fault:
                self._strike()
                next_fault = now + self.rng.uniform(0.2, 2 * self.pace_s)
            if now >= next_look:
                self._look()
                self.say(
                    f"{now - started:5.0f} s: {len(self.orders.all)} jobs, {self.kills} kills, {len(self.wrong)} wrong"
                )
                told = self._tell(told)
                next_look = now + 10
            time.sleep(0.05)
        return self._end(time.monotonic() - started)

    def _tell(self, told: int) -> int:
        for sentence in self.wrong[told:]:
            self.say(f"    {sentence}")
        return len(self.wrong)

    @property
    def kills(self) -> int:
        """Workers that were ended by SIGKILL, or by a row."""
        return self.done["kill"] + self.done["kill point"] + self.done["curse"]

    def _end(self, seconds: float) -> dict[str, Any]:
        for _, end in self.later:
            end()
        self.later.clear()
        self.say("no more faults: the jobs have to end")

        def all_ended() -> bool:
            self.supervise(doomed=0.0)
            self.orders.go_on()
            return all(map(self.orders.over, self.orders.all))

        try:
            wait_until("the jobs to end", all_ended, _END_S, every_s=0.2)
        except TimeoutError:
            open_ = [order.job for order in self.orders.all if not self.orders.over(order)]
            self.wrong.append(f"P1: {open_} have not ended")
        for worker in self.fleet:
            worker.close()
        self._check_store()
        work = Work.of(self.logs)
        if work.again > sum(work.in_hand.values()):
            self.wrong.append(f"P10: {work.again} rows were generated again, {sum(work.in_hand.values())} were in hand")
        self.proxy.close()
        self.permits.close()
        return self._result(seconds, work)

    def _check_store(self) -> None:
        self._look()
        # What upkeep does once a day, and a week after a stage was last written to.
        clean_up(self.store, now() + timedelta(days=8))
        over = [order for order in self.orders.all if self.orders.over(order)]
        deleted = {order.job: order.stage for order in over if order.deletion == "done"}
        kept = [order.expected for order in over if order.deletion == "no"]
        self.wrong += check_store(self.mill.store_path, kept, deleted)

    def _result(self, seconds: float, work: Work) -> dict[str, Any]:
        rows = sum(order.expected.rows * order.expected.n for order in self.orders.all)
        return {
            "seconds": round(seconds, 1),
            "jobs": len(self.orders.all),
            "rows": rows,
            "kills": self.kills,
            "faults": dict(sorted(self.done.items())),
            "recovery_s": {
                "median": round(median(self.recoveries), 2) if self.recoveries else None,
                "max": round(max(self.recoveries), 2) if self.recoveries else None,
            },
            "generated": {
                "rows": work.rows,
                "again": work.again,
                "in_hand_of_the_dead": sum(work.in_hand.values()),
                "ratio": round(work.rows / max(work.rows - work.again, 1), 4),
            },
            "violations": self.wrong,
        }

    def _strike(self) -> None:
        name = self.rng.choice([name for name in self.faults for _ in range(FAULTS[name][0])])
        strike = FAULTS[name][1]
        if strike is not None:
            with contextlib.suppress(PromptmillError, OSError):
                self.done[name] += bool(strike(self))

    def _end_disturbances(self) -> None:
        for when, end in list(self.later):
            if time.monotonic() >= when:
                end()
                self.later.remove((when, end))

    def _look(self) -> None:
        self.wrong += [line for line in self.published.look() if not any(name in line for name in self.damaged)]

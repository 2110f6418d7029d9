"""What a campaign has asked for: the jobs that it submits, cancels, retries and deletes, and what may become of each.

Every command may find Redis away. It is then given again until it succeeds, as a person would.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from jobs import layout
from ops.faults.checker import Expected
from ops.faults.curse import CURSE
from tests.mill import Mill
from tests.outcome import Outcome

MODEL, TOKENS, PROMPTS = "tiny", 16, 150
#: Jobs that are there at once.
_LIVE = 3


@dataclass(eq=False)
class Order:
    """One job, by the command that makes it."""

    expected: Expected
    command: tuple[str, ...]
    #: Of a retry: the order whose job it retries.
    parent: Order | None = None
    accepted: bool = False
    deletion: Literal["no", "asked", "done"] = "no"
    #: Of a job whose deletion was asked for: where its files are.
    stage: str = ""

    @property
    def job(self) -> str:
        return self.expected.job

    @property
    def root(self) -> str:
        return self.parent.root if self.parent else self.job


@dataclass
class Orders:
    """``texts`` says what the model alone makes of each prompt; ``wrong`` takes what no command may do."""

    mill: Mill
    rng: random.Random
    faults: Sequence[str]
    texts: Mapping[str, str]
    wrong: list[str]
    done: Counter[str]
    all: list[Order] = field(default_factory=list)

    def keep_coming(self) -> None:
        """See to it that there are jobs, and that every command that failed for want of Redis is given again."""
        if sum(not self.over(order) for order in self.all) < _LIVE:
            self.all.append(self._new(len(self.all)))
        self.go_on()

    def go_on(self) -> None:
        for order in self.all:
            if order.deletion == "asked":
                self.delete(order)
            elif not self.over(order):
                self._submit(order)

    def over(self, order: Order) -> bool:
        """Whether nothing more is to come of it."""
        return order.deletion == "done" or (order.accepted and order.deletion == "no" and self.ended(order))

    def ended(self, order: Order) -> bool:
        return (self.mill.store_path / layout.success_file(order.job)).exists()

    def live(self, ending: str | None = None) -> list[Order]:
        """The accepted jobs that have not ended, of those that may end so."""
        return [
            order
            for order in self.all
            if order.accepted and order.deletion == "no" and not self.ended(order)
            if ending is None or ending in order.expected.endings
        ]

    def retry_one(self) -> bool:
        """Retry a job that left rows which can be; False if there is none."""
        retried = {order.parent for order in self.all if order.deletion != "done"}
        left = [order for order in self.all if self._left_rows(order) and order not in retried]
        if not left:
            return False
        parent = self.rng.choice(left)
        number = 1 + sum(order.root == parent.root for order in self.all if order.parent)
        endings = {"completed"} | ({"cancelled"} if "cancel" in self.faults and self.rng.random() < 0.2 else set())
        expected = replace(parent.expected, job=f"{parent.root}-r{number}", endings=frozenset(endings))
        order = Order(expected, ("retry", parent.job, "--cancelled", "--expired"), parent)
        self.all.append(order)
        self._submit(order)
        return True

    def delete_one(self) -> bool:
        """Delete a job, live or ended, whose retry is not under way; False if there is none."""
        needed = {order.parent for order in self.all if not order.accepted}
        free = [order for order in self.all if order.accepted and order.deletion == "no" and order not in needed]
        if not free:
            return False
        order = self.rng.choice(free)
        order.stage, order.deletion = self.mill.record(order.job).stage, "asked"
        self.delete(order)
        return True

    def delete(self, order: Order) -> None:
        outcome = self._call("delete", order.job, "--yes")
        if outcome.code == 0:
            order.deletion = "done"

    def _left_rows(self, order: Order) -> bool:
        if not order.accepted or order.deletion != "no" or not self.ended(order):
            return False
        manifest = json.loads((self.mill.store_path / layout.manifest_file(order.job)).read_bytes())
        return bool(manifest["rows"]["total"] > manifest["rows"]["completed"])

    def _new(self, number: int) -> Order:
        rows, n = self.rng.choice([1, 10, 60, 120, 240]), self.rng.choice([1, 1, 1, 2])
        name = f"job-{number}"
        prompts = [self.rng.choice(list(self.texts)) for _ in range(rows)]
        texts = {(i, sample): self.texts[prompt] for i, prompt in enumerate(prompts) for sample in range(n)}
        errors = {}
        if "curse" in self.faults and rows >= 60 and self.rng.random() < 0.1:
            index = self.rng.randrange(rows)
            prompts[index] += f" has {CURSE}"
            errors[index] = "poison"
            texts = {key: text for key, text in texts.items() if key[0] != index}
        lines = "".join(json.dumps({"prompt": prompt, "number": i}) + "\n" for i, prompt in enumerate(prompts))
        flags = ["--model", MODEL, "--max-tokens", str(TOKENS), "--batch-size", str(self.rng.choice([5, 10, 20]))]
        flags += ["--n", str(n), "--job-id", name, "--priority", str(self.rng.randint(-2, 2))]
        endings = {"completed"}
        if "cancel" in self.faults and self.rng.random() < 0.1:
            endings.add("cancelled")
        if "deadline" in self.faults and self.rng.random() < 0.05:
            flags += ["--deadline", f"{self.rng.randint(3, 20)}s"]
            endings.add("expired")
        expected = Expected(name, rows, n, frozenset(endings), texts, errors)
        return Order(expected, ("submit", self.mill.write(f"{name}.jsonl", lines), *flags))

    def _submit(self, order: Order) -> None:
        """Until it is accepted; and now and then once more."""
        twice = "submit again" in self.faults and self.rng.random() < 0.005
        if order.accepted and not twice:
            return
        outcome = self._call(*order.command)
        self.done["submit again"] += order.accepted
        if outcome.code == 0:
            order.accepted = True
            self._named(order, outcome.out.strip())

    def _named(self, order: Order, job: str) -> None:
        """The command has said what the job is called. The number of a retry goes to the one that is quicker."""
        if job != order.job and (order.parent is None or job == order.parent.job):
            self.wrong.append(f"{' '.join(order.command)} made {job}, not {order.job}")
        order.expected = replace(order.expected, job=job)

    def _call(self, *command: str) -> Outcome:
        outcome = self.mill.call(*command, PROMPTMILL_REDIS_URL=self.mill.redis_url)
        if outcome.code not in (0, 3):
            self.wrong.append(f"{command[0]} ended with {outcome.code}: {outcome.err}")
        return outcome

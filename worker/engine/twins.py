"""Requests that must have the same answer, computed once. No torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import chain

from jobs.spec import now
from worker.engine.request import Completion, Request
from worker.engine.row import Row

#: Answers that are remembered after their row has ended, and the tokens (prompt and generated) they may take together.
MAX_ANSWERS, MAX_TOKENS = 4096, 300_000


class Twins:
    """Finds rows whose prompt and parameters are those of another row, and gives them its completion.

    Greedy rows are twins whatever their seed; sampled ones only with the same seed and sample. A row waits only for
    one of its own group (job): another group's may be the last of a long backlog. What is known already is for all.
    """

    def __init__(self) -> None:
        #: The row that computes, by its group and what decides the answer.
        self._leaders: dict[tuple[str, Hashable], Row] = {}
        #: Those that wait for it, by its key and theirs.
        self._followers: dict[int, dict[int, Row]] = {}
        self._answers: OrderedDict[Hashable, Completion] = OrderedDict()
        self._tokens = 0
        #: Rows that needed no computing.
        self.repeated = 0

    def __len__(self) -> int:
        return sum(map(len, self._followers.values()))

    def __iter__(self) -> Iterator[Row]:
        """The rows that wait for another."""
        return chain.from_iterable(followers.values() for followers in self._followers.values())

    def join(self, row: Row) -> bool:
        """Whether the answer to ``row`` is known, or will be without computing it; else others may follow it."""
        question = _question(row.request)
        if (answer := self._answers.get(question)) is not None:
            self._answers.move_to_end(question)
            self._answer(row, answer)
            return True
        leader = self._leaders.setdefault((row.group, question), row)
        if leader is row:
            return False
        self._followers.setdefault(leader.key, {})[row.key] = row
        return True

    def ended(self, row: Row) -> list[Row]:
        """Give the completion of ``row`` to those who wait for it. Returns rows that have to be computed after all."""
        question = _question(row.request)
        leader = self._leaders.get((row.group, question))
        if leader is not row:
            if leader is not None:
                self._leave(leader, row)
            return []
        del self._leaders[row.group, question]
        followers = [one for one in self._followers.pop(row.key, {}).values() if not one.done]
        completion = row.future.result()
        if completion.cancelled:
            return [one for one in followers if not self.join(one)]
        for one in followers:
            self._answer(one, completion)
        if completion.error_code is None:
            self._remember(question, completion)
        return []

    def _leave(self, leader: Row, row: Row) -> None:
        """Forget a row that no longer waits for ``leader``, if it did."""
        followers = self._followers.get(leader.key, {})
        if followers.pop(row.key, None) is not None and not followers:
            del self._followers[leader.key]

    def _answer(self, row: Row, completion: Completion) -> None:
        self.repeated += 1
        # The leader may have ended long before this row's job was there.
        moment = now()
        row.future.set_result(
            replace(completion, repeated=True, shared_tokens=0, started_at=moment, finished_at=moment)
        )

    def _remember(self, question: Hashable, completion: Completion) -> None:
        if (known := self._answers.pop(question, None)) is not None:
            self._tokens -= _size(known)
        self._answers[question] = completion
        self._tokens += _size(completion)
        while len(self._answers) > MAX_ANSWERS or self._tokens > MAX_TOKENS:
            self._tokens -= _size(self._answers.popitem(last=False)[1])


def _size(completion: Completion) -> int:
    return completion.prompt_tokens + len(completion.token_ids)


def _question(request: Request) -> Hashable:
    params = request.params
    draw = (request.seed, request.sample) if params.temperature else None
    return tuple(request.prompt_ids), params.model_copy(update={"n": 1, "seed": None}), draw

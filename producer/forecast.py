"""What can be said of a job before it runs: what is asked and found before its rows are read, and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.errors import InputError
from jobs.settings import Settings
from jobs.spec import split_model
from producer.counting import CountingMeter
from producer.estimate import Estimate, estimate
from producer.fleet import Fleet
from producer.tokenizer import can_count, context_length, find_tokenizer
from producer.tokens import Meter, Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(slots=True)
class Forecast:
    """``meter`` takes the rows, and is None where nothing was asked for that needs one."""

    meter: Meter | None = None
    context: int | None = None
    #: Who says so, for people.
    context_from: str | None = None
    fleet: Fleet | None = None
    estimate: Estimate | None = None
    notes: list[str] = field(default_factory=list)

    def conclude(self, tokens: Tokens, result_rows: int) -> None:
        """To be called when all rows were seen: estimates the time, or says why nobody can."""
        fleet = self.fleet
        if fleet is None:
            return
        self.estimate = estimate(tokens, result_rows, fleet)
        if self.estimate is not None:
            self.notes += self.estimate.notes
        elif fleet.unknown is not None:
            self.notes.append(f"no estimate of the time: {fleet.unknown}")
        elif result_rows:
            self.notes.append(_nothing_shown(fleet))

    def to_json(self) -> dict[str, Any]:
        """What ``check --json`` has besides the report."""
        return {
            "context": self.context,
            "context_from": self.context_from,
            "estimate": self.estimate.to_json() if self.estimate else None,
        }


def prepare(
    settings: Settings, model: str | None, tokenizer: str | None, context: int | None, *, every_token: bool = False
) -> Forecast:
    """Asks the live workers of ``model``, and finds its tokenizer and context length where there are any.

    ``model`` is ``NAME`` or ``NAME=PATH_OR_ID``, ``tokenizer`` a path or an id; ``context`` overrules all others.
    ``every_token``: no sample. Raises InputError for a tokenizer that was named and cannot be had.
    """
    forecast = Forecast()
    name, source = split_model(model) if model is not None else (None, None)
    if name is not None:
        forecast.fleet = Fleet.look(settings, name)
    counter = None
    if tokenizer is not None:
        counter, source = find_tokenizer(tokenizer, download=True), tokenizer
    elif source is not None:
        counter = _tokenizer_of_model(forecast, source, named=source != name)
    if every_token and counter is None:
        why = forecast.notes[0] if forecast.notes else "name the model's with --tokenizer PATH_OR_ID"
        raise InputError(f"--exact-tokens needs a tokenizer: {why}")
    _find_context(forecast, context, source)
    if counter is not None:
        forecast.meter = CountingMeter(counter, f"the tokenizer of {source}", forecast.context, every=every_token)
    elif model is not None or context is not None:
        forecast.meter = Meter(forecast.context, forecast.fleet.chars_per_token if forecast.fleet else None)
    return forecast


def for_submit(fleet: Fleet) -> Meter | None:
    """A meter that finds the rows which live workers will probably refuse or cut; None if none says what they take."""
    return Meter(fleet.context, fleet.chars_per_token) if fleet.workers and fleet.context else None


def _tokenizer_of_model(forecast: Forecast, source: str, *, named: bool) -> Tokenizer | None:
    """That of ``--model``, if it can be had: its path or id was not given to count tokens in the first place."""
    if not named and not can_count():
        return None
    try:
        return find_tokenizer(source, download=named)
    except InputError as error:
        if named:
            forecast.notes.append(f"tokens are estimated: {error}")
        return None


def _find_context(forecast: Forecast, given: int | None, source: str | None) -> None:
    fleet = forecast.fleet
    if given is not None:
        forecast.context, forecast.context_from = given, "--context"
    elif fleet is not None and fleet.context is not None:
        whose = "live workers" if fleet.workers else "the last worker"
        forecast.context, forecast.context_from = fleet.context, f"{whose} of {fleet.model!r}"
    elif source is not None and (found := context_length(source)) is not None:
        forecast.context, forecast.context_from = found, f"the config.json of {source}"


def _nothing_shown(fleet: Fleet) -> str:
    if fleet.workers:
        return (
            f"no estimate of the time: no worker of {fleet.model!r} has had work yet; check again when a first small "
            "job has run"
        )
    return (
        f"no estimate of the time: no worker of {fleet.model!r} was seen in seven days; start one, submit a few of the "
        "rows as a first job, and check again"
    )

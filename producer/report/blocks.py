"""What sections of the page are built of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from producer.report.markup import Content, Html, element, join, theirs

NOTHING = join(())

#: Characters of what a row says.
SHOWN_MESSAGE = 300


def section(title: str, *content: Content) -> Html:
    return element("section", element("h2", title), *content)


def table(names: list[str], rows: Iterable[Sequence[Content]], kinds: str) -> Html:
    """A table; ``kinds`` has a letter for each column: f(igures), n(arrow), m(eter), w(ide)."""
    classes = [{"f": "number", "n": "narrow", "m": "meter", "w": None}[kind] for kind in kinds]
    head = element("tr", *(element("th", name, class_=kind) for name, kind in zip(names, classes, strict=True)))
    body = (
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, classes, strict=True)))
        for row in rows
    )
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


def fact_list(facts: Iterable[tuple[str, Content]]) -> Html:
    return element("dl", *(join([element("dt", name), element("dd", value)]) for name, value in facts))


def clipped(text: str | None, most: int = SHOWN_MESSAGE) -> Html:
    if text is None:
        return element("span", "none", class_="quiet")
    return theirs(text if len(text) <= most else text[: most - 1] + "…")


def value_text(value: object) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple | list) else str(value).lower()

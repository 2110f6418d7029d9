"""HTML and SVG that are escaped by construction.

``element`` is the only way to make markup: text that is given to it is escaped, whoever wrote it, unless it is
``Html``, which only ``element`` and ``join`` make. The page's own style sheet is the one exception; see page.py.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

#: Elements that have no end tag.
_VOID = frozenset({"meta", "link", "br", "hr", "img"})

#: Characters that a page must not have, or that show nothing: C0 and C1 controls, halves of surrogate pairs.
_UNSHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Content = Html | str | int | None


def escaped(content: Content) -> Html:
    """``content`` as markup: ``Html`` as it is, nothing for None, everything else escaped."""
    if isinstance(content, Html):
        return content
    return Html("" if content is None else html.escape(_UNSHOWN.sub(_shown, str(content))))


def element(name: str, /, *content: Content, **attributes: str | float | None) -> Html:
    """``<name attributes>content</name>``; ``class_`` and ``stroke_width`` are written ``class`` and ``stroke-width``.

    Attributes that are None are left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(escaped(item) for item in content)
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{inner}</{name}>")


def join(parts: Iterable[Content]) -> Html:
    """The parts, one after the other."""
    return Html("".join(escaped(part) for part in parts))


def theirs(text: str | None) -> Html:
    """Text of the user's: its direction of writing is found out, and changes nothing around it."""
    return element("bdi", text)


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4f}".rstrip("0").rstrip(".")


def _shown(match: re.Match[str]) -> str:
    """The picture of a control character (U+2400 and on), or that of what cannot be shown."""
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

"""The nearest valid name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, options: Iterable[object]) -> str:
    """ " (did you mean 'x'?)" for the closest of ``options``, or an empty string when none is close."""
    folded = {str(option).casefold(): str(option) for option in options}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    return f" (did you mean {cut(folded[close[0]])!r}?)" if close else ""


def listing(options: Iterable[object], limit: int = 12) -> str:
    """The options, comma-separated, cut after ``limit`` of them."""
    names = [str(option) for option in options]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def cut(text: object, limit: int = 80) -> str:
    """The text, cut after ``limit`` characters."""
    whole = str(text)
    return whole if len(whole) <= limit else f"{whole[:limit]}..."

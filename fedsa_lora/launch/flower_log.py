"""Read what Flower printed: the reason of a failure, in one place that knows Flower's and Ray's wording."""

import re
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LOG_TAIL_BYTES = 1 << 20

COMPLETE = "the run is complete"  # what the ServerApp says when everything is written
# Lines of the server's own, whole: what it quotes of a client stands behind other words, on one line.
_INFO, _WARNING = (rf"^{level} [-\d :,]*: +" for level in ("INFO", "WARNING"))
_COMPLETE_LINE = re.compile(rf"{_INFO}{COMPLETE}: ", re.MULTILINE)
_STARTING = re.compile(
    rf"{_WARNING}(?:(still starting Ray: \d{{1,9}} of \d{{1,9}} clients after \d{{1,9}} s)"
    r"|\d+ of \d+ clients are there\b[^\n:]*)$",
    re.MULTILINE,
)
_ROUND = re.compile(rf"{_INFO}\[ROUND (\d{{1,9}})\]$", re.MULTILINE)
_RAY_PREFIX = re.compile(r"^\([^()]*pid=\d+[^()]*\) ")
_RAISED = "Simulation failed with exception: "
_FLOWERS_WRAPPERS = (
    "RuntimeError: Simulation Runtime crashed.",
    "RuntimeError: An error was encountered. Ending simulation.",
)


def tail(log: Path, begin: int = 0) -> str:
    """Return the end of `log`, 1 MiB at most and nothing before byte `begin`, without colours."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LOG_TAIL_BYTES))
        return ANSI.sub("", file.read().decode("utf-8", errors="replace"))


def rounds_begun(log: Path) -> int:
    """Return the number of the last round that the ServerApp began, 0 before the first."""
    return max(map(int, _ROUND.findall(tail(log))), default=0)


def still_starting(log: Path) -> str:
    """Return what the ServerApp last said that it waits for, as long as it does; else nothing."""
    return next(reversed(_STARTING.findall(tail(log))), "")


def said_complete(log: Path, begin: int = 0) -> bool:
    """Return whether the ServerApp came to its good end, in what was logged from byte `begin` on: before it
    may be the end of another run. Only a whole line counts, not one that quotes a client."""
    return _COMPLETE_LINE.search(tail(log, begin)) is not None


def failure_reason(log: str, details: str) -> str:
    """Return the last exception in `log`, with all lines of its message if Flower's `details` have them.

    When the details are Flower's own verdict, as on a process that was killed, that comes first.
    """
    message = details.removeprefix(_RAISED).strip()
    last = next((text for text in reversed(_exceptions(log)) if text not in _FLOWERS_WRAPPERS), "")
    if message and not details.startswith(_RAISED):
        hint = " (it was killed, perhaps out of memory)" if "heartbeat" in message else ""
        return f"{message}{hint}" + (f"; the last exception in the log is {last}" if last else "")
    kind, _, first = last.partition(": ")
    if first and message.startswith(first):
        return f"{kind}: {message}"
    return last or message or "Flower gives no reason"


def _exceptions(log: str) -> list[str]:
    """Return the line that ends each traceback."""
    found, in_traceback = [], False
    for line in (_RAY_PREFIX.sub("", line) for line in log.splitlines()):
        if line.endswith("Traceback (most recent call last):"):
            in_traceback = True
        elif in_traceback and line and not line[0].isspace():
            found.append(line.strip())
            in_traceback = False
    return found

"""Outcome of a run for each client: data, what it reaches alone and federated, bytes and failures."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.runs.measures import worse
from fedsa_lora.runs.reading import Row, RunRecord

# Kinds of remarks on answers: a client reported an error, its answer was not taken, or it gave none
FAILURES = ("error", "rejected", "lost")
CLIPPED = "clipped"  # its update was taken, but scaled down to a bound


@dataclass(frozen=True)
class ClientOutcome:
    """One client at the end of a run; values are of the primary measure, on its own test examples, None if
    not measured.

    ``measured`` are the examples that it was measured on last; 0: it has none, None: it was never asked.
    ``union`` is on those of all clients together; ``newcomer`` and ``newcomer_alone`` are of a client that
    joins at the end (``fedsa-lora evaluate``). ``gain``: how much better personalised is than local-only;
    ``harmed``: the client would have been better off alone; ``union_gap``: how much better the client's model
    is on its own examples than on those of all clients.
    """

    client: str
    train: int | None = None
    test: int | None = None
    measured: int | None = None
    majority: float | None = None
    local_only: float | None = None
    before: float | None = None
    personalised: float | None = None
    evaluated_in: int | None = None
    rounds: int = 0
    failures: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    union: float | None = None
    newcomer: float | None = None
    newcomer_alone: float | None = None
    gain: float | None = None
    harmed: bool | None = None
    union_gap: float | None = None


@dataclass(frozen=True)
class Remark:
    """A fault of answers of a client (None: of nobody knows whose), of which kind it was, and the
    rounds in which it was."""

    client: str | None
    kind: str
    reason: str
    rounds: tuple[int, ...]

    def __str__(self) -> str:
        return self.reason if self.client is None else f"client {self.client}: {self.reason}"


def failures(row: Row) -> list[Row]:
    """The remarks of the row of a round on answers that were not there to continue with."""
    return [remark for remark in row.get("remarks") or [] if remark["kind"] in FAILURES]


def client_outcomes(record: RunRecord) -> list[ClientOutcome]:
    """One outcome per client that the partition or any round names, in the order of their ids."""
    shares: Row = record.partition.get("clients", {})
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in record.clients:
        rows[str(row["client"])].append(row)
    failed = Counter(remark["client"] for row in record.rounds for remark in failures(row))
    return [
        _outcome(name, shares.get(name, {}), rows[name], failed[name], record)
        for name in in_order({*shares, *rows})
    ]


def remarks(record: RunRecord) -> list[Remark]:
    """Faults of answers, by client; one that repeats in each round is reported once."""
    rounds: dict[tuple[str | None, str, str], list[int]] = defaultdict(list)
    for row in record.rounds:
        for remark in row.get("remarks") or []:
            rounds[remark["client"], remark["kind"], remark["reason"]].append(row["round"])
    found = [Remark(*what, tuple(when)) for what, when in rounds.items()]
    order = in_order({remark.client or "" for remark in found})
    return sorted(found, key=lambda remark: (order.index(remark.client or ""), remark.rounds))


def in_order(names: Iterable[str]) -> list[str]:
    """Client ids with numbers in the order of their value: 2 before 10, words after all numbers."""
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, int, str, str]:
    """By its digits, not by its value: Python makes no number of more than 4300."""
    if not (name.isascii() and name.isdecimal()):
        return (1, 0, name, "")
    digits = name.lstrip("0")
    return (0, len(digits), digits, name)


def _outcome(client: str, share: Row, rows: list[Row], failed: int, record: RunRecord) -> ClientOutcome:
    primary = record.primary
    fits = [row for row in rows if row["phase"] == "fit"]
    answers = [row for row in rows if row["phase"] == "evaluate"]
    evaluations = [row for row in answers if row.get(primary.name) is not None]
    final: Row = evaluations[-1] if evaluations else {}
    measured = _last(answers, "examples")
    union: Row = record.evaluation.get("union", {})
    newcomer: Row = record.evaluation.get("newcomer", {})
    personalised, local_only = final.get(primary.name), final.get("local_only")
    on_union = union.get(primary.name, {}).get(client)
    gain = _better(primary, personalised, local_only)
    return ClientOutcome(
        client=client,
        train=share.get("train"),
        test=share.get("test", measured),
        measured=measured,
        majority=final.get("majority"),
        local_only=local_only,
        before=_last(fits, primary.before),
        personalised=personalised,
        evaluated_in=final.get("round"),
        rounds=len(fits),
        failures=failed,
        bytes_up=sum(row.get("bytes_up") or 0 for row in rows),
        bytes_down=sum(row.get("bytes_down") or 0 for row in rows),
        union=on_union,
        newcomer=newcomer.get(primary.name, {}).get(client),
        newcomer_alone=newcomer.get("alone", {}).get(client),
        gain=gain,
        harmed=None if gain is None or local_only is None else worse(gain, local_only),
        union_gap=_better(primary, personalised, on_union),
    )


def _better(primary: Measure, value: float | None, reference: float | None) -> float | None:
    """Gain of a value over a reference; None where one of them was not measured."""
    if value is None or reference is None:
        return None
    return primary.merit(value) - primary.merit(reference)


def _last(rows: list[Row], key: str) -> Any:
    """The newest value that there is; None without one."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return known[-1] if known else None

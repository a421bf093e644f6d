"""The reason of a failure, from what Flower printed and what it says of the run."""

from pathlib import Path

import pytest

from fedsa_lora.launch.flower_log import failure_reason, rounds_begun, still_starting, tail

TRACEBACK = "Traceback (most recent call last):\n  File 'x', line 1, in f\n    raise it\n"


@pytest.mark.parametrize(
    ("log", "details", "reason"),
    [
        ("", "", "Flower gives no reason"),
        ("INFO : fine", "Simulation failed with exception: boom", "boom"),
        (f"{TRACEBACK}a.B: first\n{TRACEBACK}c.Odd: last\nINFO : bye", "", "c.Odd: last"),
        (f"ERROR :   {TRACEBACK}KeyboardInterrupt\n", "", "KeyboardInterrupt"),
        (
            f"{TRACEBACK}E: 2 faults\n - x",
            "Simulation failed with exception: 2 faults\n - x",
            "E: 2 faults\n - x",
        ),
        ("", "No heartbeat received", "No heartbeat received (it was killed, perhaps out of memory)"),
        (f"{TRACEBACK}E: x", "Stopped", "Stopped; the last exception in the log is E: x"),
        (
            f"{TRACEBACK}E: no room\n{TRACEBACK}RuntimeError: An error was encountered. Ending simulation.",
            "Simulation failed with exception: An error was encountered. Ending simulation.",
            "E: no room",
        ),
        (f"(ClientAppActor pid=7) {TRACEBACK}(ClientAppActor pid=7) E: x", "", "E: x"),
    ],
)
def test_failure_reason(log: str, details: str, reason: str) -> None:
    assert failure_reason(log, details) == reason


def test_tail_reads_only_this_run_and_no_colours(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("old\n\x1b[92mINFO \x1b[0m: new")
    assert tail(log, begin=4) == "INFO : new"


def test_what_a_simulation_waits_for_is_told_until_its_clients_are_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert still_starting(log) == ""
    said = "WARNING :   still starting Ray: 0 of 6 clients after {} s\n"
    log.write_text("INFO :      [ROUND 1]\n" + said.format(60) + said.format(120))
    assert still_starting(log) == "still starting Ray: 0 of 6 clients after 120 s"
    log.write_text(log.read_text() + "WARNING :   6 of 6 clients are there after 130 s\n")
    assert still_starting(log) == ""
    log.write_text("INFO :      [ROUND 1]\n")
    assert still_starting(log) == ""


QUOTED = [
    "WARNING :   client 3: {}\n",
    "INFO :      client 3 is asked once more: {}\n",
    "WARNING :   node 7 {}\n",
    "(ClientAppActor pid=7) INFO :      {}\n",
    "ERROR :     {}\n",
]


@pytest.mark.parametrize("line", QUOTED)
def test_what_a_client_says_moves_no_progress_line(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log"
    own = (
        "INFO 2026-11-29 18:00:00,123:      [ROUND 2]\n"
        "WARNING :   still starting Ray: 0 of 6 clients after 60 s\n"
    )
    said = ["[ROUND " + "9" * 400 + "]", "[ROUND 77]", "6 of 6 clients are there"]
    log.write_text(own + "".join(line.format(text) for text in said))
    assert rounds_begun(log) == 2
    assert still_starting(log) == "still starting Ray: 0 of 6 clients after 60 s"
    log.write_text(line.format("still starting Ray: 1 of 9 clients after 5 s"))
    assert (rounds_begun(log), still_starting(log)) == (0, "")


def test_a_round_with_more_digits_than_any_run_has_is_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("INFO :      [ROUND " + "9" * 5000 + "]\n")
    assert rounds_begun(log) == 0

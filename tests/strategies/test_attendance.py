"""Who is left out, from when to when, and that a checkpoint holds all of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsa_lora.errors import RunError
from strategies.round.admission import Admission, Remark
from strategies.round.attendance import Attendance

EVERYONE = frozenset("abcd")
ROUNDS = st.lists(st.sets(st.sampled_from(sorted(EVERYONE))), max_size=20)


def played(attendance: Attendance, answered, begin: int = 1) -> list[frozenset[str]]:
    """Rounds in which everyone is asked who is not left out. Who was left out of each."""
    out = []
    for round_, good in enumerate(answered, begin):
        out.append(attendance.excluded(round_))
        asked = EVERYONE - out[-1]
        attendance.note(round_, asked, asked & good)
    return out


def test_who_failed_so_often_in_a_row_is_left_out_for_a_while_then_comes_back_on_probation():
    others, out = EVERYONE - {"a"}, frozenset("a")
    attendance = Attendance(exclude_after=2, exclude_rounds=3)
    assert played(attendance, [others] * 2) == [set(), set()]
    assert played(attendance, [others] * 4, begin=3) == [out, out, out, set()], "back in the sixth"
    assert played(attendance, [others] * 4, begin=7) == [out, out, out, set()], "where one failure is enough"
    assert played(attendance, [EVERYONE, others, EVERYONE, others], begin=14) == [set()] * 4


@given(ROUNDS, ROUNDS, st.integers(0, 3), st.integers(1, 4))
def test_what_is_restored_leaves_out_the_same_clients(before, after, exclude_after, exclude_rounds):
    whole, first, second = (Attendance(1, exclude_after, exclude_rounds) for _ in range(3))
    expected = played(whole, before + after)
    played(first, before)
    second.restore(first.state())
    assert played(second, after, begin=1 + len(before)) == expected[len(before) :]
    for name, array in whole.state().items():
        assert np.array_equal(second.state()[name], array)


@given(ROUNDS)
def test_nobody_is_left_out_where_that_is_switched_off(answered):
    attendance = Attendance(exclude_after=0)
    assert not any(played(attendance, answered))
    assert attendance.state() == {}, "and nothing is kept of it"


def test_so_many_rounds_without_enough_results_end_a_run_also_with_a_break_between_them():
    nobody = Admission([], [Remark(client, "lost", "gone") for client in "01"], 0)
    attendance = Attendance(max_skipped=3)
    attendance.skip(4, 2, nobody, "one is needed")
    resumed = Attendance(max_skipped=3)
    resumed.restore(attendance.state())
    resumed.skip(5, 2, nobody, "one is needed")
    with pytest.raises(
        RunError, match=r"3 rounds in a row.*2 of 2 .*round 6.*\nclient 0: gone \(and 1 more: 1\)$"
    ):
        resumed.skip(6, 2, nobody, "one is needed")

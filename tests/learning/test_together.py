"""Calls side by side: what they ask of a trainer goes to it at once, and each is as if it were alone."""

import pytest

from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.together import Together, at_the_same_time


class Doubling:
    """A trainer whose jobs are numbers; it remembers what it was asked at a time."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, jobs):
        self.asked.append(list(jobs))
        if any(job < 0 for job in jobs):
            raise ArithmeticError(f"{min(jobs)} is negative")
        return [TrainingError(f"{job} is odd") if job % 2 else 2 * job for job in jobs]


def asking(trainer, *numbers):
    """A call that asks for one number after another, and returns what it was told."""
    return lambda: [trainer([number])[0] for number in numbers]


def test_what_calls_ask_for_goes_to_the_trainer_together_in_their_order_until_each_has_ended():
    inner = Doubling()
    trainer = Together(inner)
    calls = [asking(trainer, 2, 4, 6), asking(trainer), asking(trainer, 8), asking(trainer, 10, 12)]
    assert at_the_same_time(calls) == [[4, 8, 12], [], [16], [20, 24]]
    assert inner.asked == [[2, 8, 10], [4, 12], [6]]
    assert trainer([14, 16]) == [28, 32], "outside of calls it is the plain one"


def test_a_call_alone_is_made_as_it_is():
    inner = Doubling()
    assert at_the_same_time([asking(Together(inner), 2)]) == [[4]]
    assert at_the_same_time([]) == []


def test_an_error_in_the_place_of_an_outcome_and_an_error_of_a_call_are_of_that_call_alone():
    trainer = Together(Doubling())

    def raises():
        trainer([2])
        raise OSError("no such device")

    told = []
    (one, two) = at_the_same_time([asking(trainer, 2, 3), asking(trainer, 4, 6)])
    assert (one[0], str(one[1]), two) == (4, "3 is odd", [8, 12])
    with pytest.raises(OSError, match="no such device"):
        at_the_same_time([raises, lambda: told.extend(trainer([4]) + trainer([6]))])
    assert told == [8, 12], "the others go on to their end"


def test_where_the_trainer_fails_for_all_each_is_asked_for_alone():
    inner = Doubling()
    trainer = Together(inner)

    def caught():
        try:
            return trainer([-1])
        except ArithmeticError as error:
            return str(error)

    assert at_the_same_time([asking(trainer, 2), caught]) == [[4], "-1 is negative"]
    assert inner.asked == [[2, -1], [2], [-1]]


def test_a_signal_while_the_trainer_works_ends_every_call():
    def stopped(jobs):
        raise KeyboardInterrupt

    ended = []

    def call():
        try:
            Together(stopped)([1])
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        at_the_same_time([call, call])
    assert ended == [True, True]

"""Checkpoints of earlier versions are read, and their runs go on to the same bits."""

import json

import numpy as np
import pytest
from memories import AFTER, BEFORE, GOLDEN, SCENARIOS, play, server

FOUND = json.loads(GOLDEN.read_text())["found"]


@pytest.fixture(params=SCENARIOS)
def scenario(request) -> str:
    return request.param


def recorded(scenario: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The shared vector of a checkpoint, and its memory."""
    memory = FOUND[scenario]["memory"]
    arrays = {name: np.array(values, dtype) for name, (dtype, values) in memory.items()}
    return np.array(FOUND[scenario]["vector"], np.float32), arrays


def test_a_run_goes_on_from_the_memory_that_an_earlier_version_wrote(scenario):
    resumed = server(scenario)
    resumed.strategy.restore(BEFORE[-1], *recorded(scenario))
    assert play(resumed, AFTER) == FOUND[scenario]["after"]


def test_what_is_written_is_what_an_earlier_version_wrote(scenario):
    whole = server(scenario)
    play(whole, BEFORE)
    _, vector, memory = whole.notes.checkpoints[-1]
    expected, arrays = recorded(scenario)
    assert np.array_equal(vector, expected)
    assert memory.keys() == arrays.keys()
    for name, array in memory.items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_allclose(array, arrays[name], rtol=1e-6, err_msg=name)
    assert play(whole, AFTER) == FOUND[scenario]["after"]


def test_the_memories_hold_what_they_are_there_for():
    prefixes = {name.split("/")[0] for found in FOUND.values() for name in found["memory"]}
    server = "examples held change_mask change took_part server uploads attendance"
    assert prefixes >= set(f"plan shared last group member direction {server}".split())

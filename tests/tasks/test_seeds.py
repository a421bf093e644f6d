"""Streams are named: equal names give equal draws, and no two names share a stream."""

import numpy as np

from fedsa_lora.seeds import generator, torch_seed


def test_a_stream_depends_on_its_name_alone():
    first = generator(7, "validation", 3).random(4)
    generator(7, "other").random(100)
    np.testing.assert_array_equal(first, generator(7, "validation", np.int64(3)).random(4))


def test_streams_are_the_same_on_every_platform():
    """Written down once: a change of these numbers changes every published split."""
    assert torch_seed(0, "backbone") == 4101742851402268517
    assert generator(0, "rows").integers(1000, size=3).tolist() == [685, 169, 833]


def test_seeds_and_keys_are_told_apart():
    keys = [(0,), (1,), (0, "a"), (0, 1), (0, "1"), (0, "ab", "c"), (0, "a", "bc"), (0, 1, 2), (0, 12), (-1,)]
    assert len({torch_seed(*key) for key in keys}) == len(keys)
    assert len({generator(*key).random() for key in keys}) == len(keys)
    assert all(0 <= torch_seed(*key) < 2**63 for key in keys)

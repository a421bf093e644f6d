"""Splits: every tensor is in exactly one set, whatever the policy."""

from itertools import product
from typing import get_args

import pytest

from fedsa_lora.errors import SplitError
from fedsa_lora.exchange.arrays import ROLES, Layout, TensorSpec
from fedsa_lora.exchange.split import AdapterSplit, Disposition, RoleSplit

DISPOSITIONS = get_args(Disposition)
EVERY = [RoleSplit(*choice) for choice in product(DISPOSITIONS, repeat=len(ROLES))]
LAYOUT = Layout(tuple(TensorSpec(f"{role}{i}", (i + 1,), role) for role in ROLES for i in range(2)))
FEDSA = RoleSplit(A="shared", B="local", head="local")


@pytest.mark.parametrize("split", EVERY)
def test_every_split_is_disjoint_complete_and_does_what_it_says(split):
    parts = split(LAYOUT)
    sets = {"shared": parts.shared, "local": parts.local, "frozen": parts.frozen}
    assert sorted(name for names in sets.values() for name in names) == sorted(LAYOUT.names)
    for spec in LAYOUT:
        assert spec.name in sets[split.of(spec.role)]
    assert parts.trained == set(LAYOUT.names) - parts.frozen


def test_fedsa_shares_exactly_the_a_matrices():
    assert FEDSA(LAYOUT).shared == {"A0", "A1"}
    assert FEDSA(LAYOUT).local == {"B0", "B1", "head0", "head1"}


@pytest.mark.parametrize(
    ("sets", "what"),
    [
        (({"x", "y"}, {"y"}, set()), "shared and local"),
        (({"y"}, set(), {"y", "x"}), "shared and frozen"),
        ((set(), {"y"}, {"y"}), "local and frozen"),
    ],
)
def test_a_tensor_in_two_sets_is_named(sets, what):
    with pytest.raises(SplitError, match=rf"{what}: \['y'\]$"):
        AdapterSplit(*map(frozenset, sets))


def test_every_overlap_is_named_at_once():
    with pytest.raises(SplitError, match=r"shared and local: \['x'\].*local and frozen: \['y'\]"):
        AdapterSplit(frozenset("x"), frozenset("xy"), frozenset("y"))


@pytest.mark.parametrize("split", EVERY)
def test_alone_nothing_is_shared_both_factors_are_trained_and_a_frozen_head_or_base_stays_so(split):
    alone = split.alone()
    assert alone(LAYOUT).shared == frozenset()
    assert alone.A == alone.B == "local"
    for role in ("head", "base"):
        assert (alone.of(role) == "frozen") == (split.of(role) == "frozen")


def test_a_layout_without_tensors_splits_into_nothing():
    assert FEDSA(Layout(())) == AdapterSplit(frozenset(), frozenset(), frozenset())

"""Policies of which the server decides: what they may share at all, and what they refuse to be."""

import pytest

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.adaptive import Importance, LeastVariance, scored
from fedsa_lora.exchange.arrays import ROLES, Layout, TensorSpec
from fedsa_lora.exchange.split import Alternate, RoleSplit

NAN = float("nan")
BOTH = ("A", "B")
LAYOUT = Layout(tuple(TensorSpec(f"{role}{i}", (2, 2), role) for role in ROLES for i in range(2)))


@pytest.mark.parametrize(
    ("pool", "head", "shared", "scores"),
    [
        (("A",), "local", {"A0", "A1"}, ("A0", "A1")),
        (("B",), "shared", {"B0", "B1", "head0", "head1"}, ("B0", "B1")),
        (BOTH, 0.5, {"A0", "A1", "B0", "B1", "head0", "head1"}, ("A0", "A1", "B0", "B1")),
    ],
)
def test_the_pool_is_what_may_be_shared_and_scores_are_of_its_factors(pool, head, shared, scores):
    policy = Importance(pool=pool, allow=pool, head=head)
    parts = policy(LAYOUT)
    assert parts.shared == shared
    assert parts.frozen == {"base0", "base1"}
    assert parts.local == set(LAYOUT.names) - shared - parts.frozen
    assert scored(policy, LAYOUT.select(shared)).names == scores


@pytest.mark.parametrize(
    ("key", "bad"),
    [("ema", v) for v in (-0.1, 1.0, NAN)]
    + [("hysteresis", v) for v in (0, -1)]
    + [("margin", v) for v in (-0.1, 1.0, NAN)]
    + [("budget", v) for v in (0, -4)]
    + [("threshold", v) for v in (-0.1, NAN)]
    + [("pool", ())],
)
def test_a_setting_out_of_range_is_named_with_what_was_expected(key, bad):
    with pytest.raises(ConfigError, match=rf"^{key}=.*: expected "):
        Importance(**{key: bad})


@pytest.mark.parametrize(
    "bound",
    [
        {"ema": 0.0},
        {"hysteresis": 1},
        {"margin": 0.0},
        {"budget": 1},
        {"threshold": 0.0},
        {"threshold": 2.0},
        {"threshold": "heterogeneity"},
    ],
)
def test_the_ends_of_the_ranges_are_taken(bound):
    ((key, value),) = bound.items()
    assert getattr(Importance(**bound), key) == value


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError, match=r"ema=2.*; hysteresis=0.*; budget=-1"):
        Importance(ema=2, hysteresis=0, budget=-1)


@pytest.mark.parametrize("bad", [{"count": 0}, {"measure": 0}, {"again": -1}])
def test_least_variance_measures_at_least_once_and_shares_at_least_one_layer(bad):
    with pytest.raises(ConfigError, match="expected 1, 1 and 0 or more"):
        LeastVariance(**bad)
    assert LeastVariance(count=1, measure=1, again=0)(LAYOUT).shared == {"A0", "A1"}


def test_only_what_follows_reports_is_adaptive():
    assert Importance.adaptive
    assert LeastVariance.adaptive
    assert not Alternate.adaptive
    assert not RoleSplit.adaptive


def test_words_name_the_score_and_the_number_of_layers():
    assert "fisher" in Importance(score="fisher").words()["A"]
    assert Importance(score="fisher").words()["B"] == "local"
    assert "3 layers" in LeastVariance(count=3).words()["A"]

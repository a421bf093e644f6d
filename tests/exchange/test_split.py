"""Splits: every tensor is in exactly one set, whatever the policy and the round, and only what is allowed
leaves."""

from itertools import product
from typing import get_args

import pytest

from fedsa_lora.client.personal import turn_split
from fedsa_lora.errors import ConfigError, SplitError
from fedsa_lora.exchange.adaptive import Importance, LeastVariance
from fedsa_lora.exchange.arrays import ROLES, Layout, TensorSpec
from fedsa_lora.exchange.layers import LayerWise
from fedsa_lora.exchange.split import AdapterSplit, Alternate, Disposition, RoleSplit, Turn

DISPOSITIONS = get_args(Disposition)
BOTH = ("A", "B")
EVERY = [
    RoleSplit(A=a, B=b, head=head, base=base, allow=BOTH)
    for a, b, head, base in product(DISPOSITIONS, repeat=len(ROLES))
]
LAYOUT = Layout(
    tuple(TensorSpec(f"{i}.{role}", (i + 1, 2), role, f"x.{i}.q") for role in ROLES for i in range(3))
)
FEDSA = RoleSplit(A="shared", B="local", head="local")
POLICIES = [
    FEDSA,
    RoleSplit(A="shared", B=0.5, head=0.6, allow=BOTH),
    RoleSplit(A="local", B="local", base="shared", allow=()),
    Alternate(allow=BOTH),
    Alternate(allow=BOTH, order=("B",), head="shared"),
    LayerWise(every=2, head="shared"),
    LayerWise(last=1),
    Importance(pool=BOTH, allow=BOTH, head=0.5),
    LeastVariance(count=2),
]
BY_POLICY = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)


def roles(names) -> set[str]:
    return {name.split(".")[1] for name in names}


@pytest.mark.parametrize("split", EVERY)
def test_every_split_is_disjoint_complete_and_does_what_it_says(split):
    parts = split(LAYOUT)
    sets = {"shared": parts.shared, "local": parts.local, "frozen": parts.frozen}
    assert sorted(name for names in sets.values() for name in names) == sorted(LAYOUT.names)
    for spec in LAYOUT:
        assert spec.name in sets[split.of(spec.role)]
    assert parts.trained == set(LAYOUT.names) - parts.frozen


@BY_POLICY
@pytest.mark.parametrize("round_", range(1, 6))
def test_every_tensor_is_in_exactly_one_set_in_every_round(policy, round_):
    shared = policy.in_round(LAYOUT, round_)
    for asked in (shared, frozenset(sorted(shared)[::2])):
        parts = turn_split(policy, LAYOUT, Turn(asked))
        sets = (parts.shared, parts.local, parts.frozen)
        assert sorted(name for names in sets for name in names) == sorted(LAYOUT.names)
        assert parts.shared == asked
        idle = policy(LAYOUT).shared - asked
        assert idle <= getattr(parts, policy.idle), "not asked for: kept, or standing still"


@BY_POLICY
@pytest.mark.parametrize("round_", range(1, 4))
def test_a_server_that_knows_only_what_may_be_shared_asks_for_what_the_client_would(policy, round_):
    pool = LAYOUT.select(policy(LAYOUT).shared)
    assert policy(pool).shared == frozenset(pool.names)
    assert policy.in_round(pool, round_) == policy.in_round(LAYOUT, round_)


@BY_POLICY
def test_a_round_shares_no_more_than_the_policy_and_the_policy_no_more_than_is_allowed(policy):
    pool = policy(LAYOUT).shared
    assert pool <= policy.allowed(LAYOUT)
    assert frozenset().union(*(policy.in_round(LAYOUT, round_) for round_ in range(1, 4))) <= pool


def test_fedsa_shares_exactly_the_a_matrices():
    assert roles(FEDSA(LAYOUT).shared) == {"A"}
    assert roles(FEDSA(LAYOUT).local) == {"B", "head"}
    assert roles(FEDSA(LAYOUT).frozen) == {"base"}


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


@pytest.mark.parametrize(
    "make",
    [
        lambda **allow: RoleSplit(A="shared", B="shared", **allow),
        lambda **allow: RoleSplit(A="frozen", B="shared", **allow),
        lambda **allow: RoleSplit(A="shared", B=0.5, **allow),
        lambda **allow: RoleSplit(A="shared", B=0, **allow),
        lambda **allow: Alternate(order=("A",), **allow),
        lambda **allow: Importance(pool=BOTH, **allow),
    ],
)
def test_b_leaves_no_client_unless_a_config_allows_it(make):
    with pytest.raises(ConfigError, match=r"B is to be shared, which split\.allow=\['A'\] forbids"):
        make()
    assert make(allow=BOTH).allowed(LAYOUT) >= {"0.A", "0.B"}


def test_a_is_allowed_by_default_and_can_be_forbidden():
    assert roles(RoleSplit(A="local", B=1).allowed(LAYOUT)) == {"A"}
    for make in (LayerWise, LeastVariance):
        with pytest.raises(ConfigError, match=r"A is to be shared, which split\.allow=\[\] forbids"):
            make(**({"first": 1} if make is LayerWise else {}), allow=())


@pytest.mark.parametrize(
    ("head", "base", "more"),
    [
        ("local", "frozen", set()),
        ("frozen", "local", set()),
        (1.0, "frozen", set()),
        ("shared", "frozen", {"head"}),
        (0.6, "frozen", {"head"}),
        (0, "shared", {"head", "base"}),
    ],
)
def test_a_head_or_backbone_is_let_out_where_its_policy_says_so(head, base, more):
    assert roles(RoleSplit(A="shared", B="local", head=head, base=base).allowed(LAYOUT)) == {"A"} | more


@pytest.mark.parametrize(
    ("forbid", "left"),
    [
        ([], {"0.A", "1.A", "2.A", "0.B", "1.B", "2.B"}),
        (["A"], {"0.B", "1.B", "2.B"}),
        (["1.*"], {"0.A", "2.A", "0.B", "2.B"}),
        (["[12].B", "0.A"], {"1.A", "2.A", "0.B"}),
        (["head", "B"], {"0.A", "1.A", "2.A"}),
        (["*"], set()),
        (["base"], {"0.A", "1.A", "2.A", "0.B", "1.B", "2.B"}),
    ],
)
def test_a_machine_keeps_in_what_its_roles_and_patterns_name_whatever_a_config_allows(forbid, left):
    assert RoleSplit(A="shared", B="shared", allow=BOTH).allowed(LAYOUT, forbid) == left


@pytest.mark.parametrize("word", ["a", "0", "b*", "", "heads", "*.a", "3.*", "B,head", "[12.B"])
def test_a_word_that_keeps_nothing_in_is_refused_with_the_names_that_there_are(word):
    policy = RoleSplit(A="shared", B="shared", allow=BOTH)
    with pytest.raises(ConfigError) as caught:
        policy.allowed(LAYOUT, ["A", word])
    for told in (f"forbid: {word!r} matches no tensor", "A, B, head, base", "0.A, 0.B"):
        assert told in str(caught.value)
    assert policy.allowed(LAYOUT, ["A", "emb.*"], frozen=["emb.weight"]) == {"0.B", "1.B", "2.B"}


def test_alternate_takes_its_turns_over_and_over_and_a_shared_head_is_sent_in_each():
    rolora, longer = Alternate(allow=BOTH, head="shared"), Alternate(allow=BOTH, order=("B", "B", "A"))
    assert [roles(rolora.in_round(LAYOUT, n)) for n in range(1, 5)] == [{"B", "head"}, {"A", "head"}] * 2
    assert ["".join(roles(longer.in_round(LAYOUT, n))) for n in range(1, 8)] == list("BBABBAB")
    idle = turn_split(rolora, LAYOUT, Turn(rolora.in_round(LAYOUT, 1))).frozen
    assert roles(idle) == {"A", "base"}
    with pytest.raises(ConfigError, match="order is empty"):
        Alternate(allow=BOTH, order=())


@pytest.mark.parametrize("degree", [0, 1, 0.0, 1.0])
def test_the_ends_of_a_degree_are_shared_and_local_and_nothing_is_mixed(degree):
    policy = RoleSplit(A="shared", B=degree, head=degree, allow=BOTH)
    assert policy.degrees(LAYOUT) == {}
    word = "local" if degree else "shared"
    assert policy(LAYOUT) == RoleSplit(A="shared", B=word, head=word, allow=BOTH)(LAYOUT)
    assert policy.words() == {"A": "shared", "B": word, "head": word, "base": "frozen"}


def test_between_its_ends_a_degree_is_of_every_tensor_of_its_role():
    policy = RoleSplit(A=0.25, B="local", head=0.6)
    found = {role: {d for name, d in policy.degrees(LAYOUT).items() if role in name} for role in ROLES}
    assert found == {"A": {0.25}, "B": set(), "head": {0.6}, "base": set()}
    assert len(policy.degrees(LAYOUT)) == 6
    assert policy(LAYOUT).shared == policy.degrees(LAYOUT).keys()
    assert "25%" in policy.words()["A"]
    assert "60%" in policy.words()["head"]


@pytest.mark.parametrize("degree", [-0.1, 1.1, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("role", ["A", "B", "head"])
def test_a_degree_is_from_0_to_1(role, degree):
    with pytest.raises(
        ConfigError, match=rf"{role}={degree:g}: expected a degree from 0 .shared. to 1 .local."
    ):
        RoleSplit(**{"A": "shared", "B": "local", "allow": BOTH} | {role: degree})


@BY_POLICY
def test_words_say_something_of_every_role(policy):
    words = policy.words()
    assert list(words) == list(ROLES)
    for role, word in words.items():
        shared = roles(policy(LAYOUT).shared)
        assert word.startswith("shared") == (role in shared), (role, word)

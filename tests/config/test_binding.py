"""Binding keeps every value that fits its type and lists every one that does not."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.binding import bind, check_arguments, raise_faults, resolve_target, unknown
from fedsa_lora.errors import ConfigError
from fedsa_lora.suggest import listing, nearest


@dataclass(frozen=True)
class Inner:
    size: int
    ratio: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    kind: Literal["a", "b"] = "a"
    maybe: float | None = None
    pair: tuple[int, str] = (1, "x")
    many: tuple[int, ...] = ()
    names: list[str] | None = None
    table: dict[str, int] = field(default_factory=dict)
    anything: Any = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise ConfigError("name is forbidden")


GOOD = {
    "name": st.text(max_size=5).filter(lambda name: name != "forbidden"),
    "inner": st.builds(lambda size, ratio: {"size": size, "ratio": ratio}, st.integers(), st.floats(0, 1)),
    "kind": st.sampled_from("ab"),
    "maybe": st.none() | st.floats(0, 1),
    "pair": st.tuples(st.integers(), st.text(max_size=3)).map(list),
    "many": st.lists(st.integers(), max_size=4),
    "names": st.none() | st.lists(st.text(max_size=3), max_size=3),
    "table": st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
    "anything": st.none() | st.integers() | st.text(max_size=3),
    "flag": st.booleans(),
}
BAD = {
    "name": [3, None, ["x"]],
    "inner": [None, 3, {"size": "x"}, {}, {"size": 1, "sise": 2}],
    "kind": ["c", None, 1, ["a"]],
    "maybe": ["x", True, [1.0]],
    "pair": ["x", [1], [1, "x", 2], ["x", 1]],
    "many": [3, [1, "x"], "12"],
    "names": ["x", [1]],
    "table": [3, {"x": "y"}, ["x"]],
    "flag": [0, "yes", None],
}


@settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries(GOOD))
def test_values_that_fit_are_bound_as_they_are(node):
    faults: list[str] = []
    bound = bind(Outer, node, "here", faults)
    assert faults == []
    assert bound.inner == Inner(**node["inner"])
    assert bound.pair == tuple(node["pair"])
    assert bound.many == tuple(node["many"])
    for name in ("name", "kind", "maybe", "names", "table", "anything", "flag"):
        assert getattr(bound, name) == node[name]


@settings(max_examples=120, deadline=None)
@given(st.fixed_dictionaries(GOOD), st.sets(st.sampled_from(sorted(BAD)), min_size=1), st.data())
def test_every_value_that_does_not_fit_is_listed_and_only_those(node, wrong, data):
    for name in wrong:
        node[name] = data.draw(st.sampled_from(BAD[name]))
    faults: list[str] = []
    assert bind(Outer, node, "here", faults) is None
    assert {re.match(r"here\.(\w+)", fault)[1] for fault in faults} == wrong


def test_what_is_missing_or_unknown_is_listed_with_its_place():
    faults: list[str] = []
    assert bind(Outer, {"inner": {"sise": 2}, "nam": 1}, "", faults) is None
    assert faults == [
        "nam: no such key (did you mean 'name'?)",
        "name: missing",
        "inner.sise: no such key (did you mean 'size'?)",
        "inner.size: missing",
    ]


@dataclass(frozen=True)
class Either:
    table: dict[str, int] | list[int] | None = None
    mark: float | Literal["best", "worst"] = 1.0
    whole: int | str = 1


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"table": [1, "x"]}, "table[1]: expected int, got 'x'"),
        ({"table": {"a": 1.5}}, "table.a: expected int, got 1.5"),
        ({"table": 3}, "table: expected dict, got 3"),
        ({"mark": "bst"}, "mark=bst: no such choice (did you mean 'best'?)"),
        ({"whole": 1.5}, "whole: expected int, got 1.5"),
    ],
)
def test_of_several_forms_the_fault_is_that_of_the_one_which_was_meant(node, said):
    faults: list[str] = []
    assert bind(Either, node, "", faults) is None
    assert faults == [said]
    for good in ({"table": [1]}, {"table": {"a": 1}}, {"table": None}, {"mark": "best"}, {"mark": 2}):
        bound = bind(Either, good, "", faults := [])
        assert (vars(bound) | good, faults) == (vars(bound), [])


def test_what_a_class_itself_refuses_is_a_fault_at_its_place():
    faults: list[str] = []
    assert bind(Outer, {"name": "forbidden", "inner": {"size": 1}}, "here", faults) is None
    assert faults == ["here: name is forbidden"]


def test_a_whole_number_will_do_for_a_float_and_not_the_other_way():
    assert bind(Inner, {"size": 1, "ratio": 1}, "", faults := []).ratio == 1.0
    assert type(bind(Inner, {"size": 1, "ratio": 1}, "", faults).ratio) is float
    assert faults == []
    assert bind(Inner, {"size": 1.0}, "", faults) is None
    assert faults == ["size: expected int, got 1.0"]


@pytest.mark.parametrize("node", [None, {}, {"_target_": 3}, {"_target_": None}, "os.system", []])
def test_a_node_without_a_target_is_a_fault(node):
    faults: list[str] = []
    assert resolve_target(node, "task", ("fedsa_lora.",), faults) is None
    assert len(faults) == 1
    assert "task: expected a _target_" in faults[0]


@pytest.mark.case(25)
def test_a_target_below_a_prefix_is_its_class_and_beside_it_is_refused():
    faults: list[str] = []
    target = {"_target_": "fedsa_lora.exchange.arrays.Layout"}
    assert resolve_target(target, "x", ("fedsa_lora.exchange.",), faults).__name__ == "Layout"
    assert faults == []
    assert resolve_target(target, "x", ("fedsa_lora.tasks.",), faults) is None
    assert "is not allowed; expected fedsa_lora.tasks.*" in faults[0]


def test_arguments_are_checked_by_name_type_and_need():
    class Needy:
        def __init__(self, rate: float, given: int, size: int = 1, *rest: int, **more: int) -> None: ...

    def faults_of(**arguments: Any) -> list[str]:
        faults: list[str] = []
        check_arguments(Needy, {"_target_": "Needy", **arguments}, "s", faults, known=("given",))
        return faults

    assert faults_of(rate=1) == []
    assert faults_of() == ["s.rate: missing"]
    assert faults_of(rate="x", size=2.5) == [
        "s.rate: expected float, got 'x'",
        "s.size: expected int, got 2.5",
    ]
    (fault,) = faults_of(rate=1, sise=2)
    assert fault == "s.sise: no such argument of Needy (did you mean 'size'?)"


@pytest.mark.parametrize("count", [1, 2, 40])
def test_one_error_lists_all_faults(count):
    raise_faults([])
    with pytest.raises(ConfigError) as caught:
        raise_faults([f"fault {i}" for i in range(count)])
    head, *lines = str(caught.value).splitlines()
    assert head == f"the configuration has {count} fault{'s' if count > 1 else ''}:"
    assert lines == [f"  - fault {i}" for i in range(count)]


def test_the_nearest_name_is_meant_whatever_its_case_and_a_far_one_is_not():
    assert nearest("LR", ["lr", "steps"]) == " (did you mean 'lr'?)"
    assert nearest("share_aa", ["share_a", "ffa"]) == " (did you mean 'share_a'?)"
    assert nearest("zzz", ["lr", "steps"]) == ""
    assert unknown("a.zzz", "key", ["lr", "steps"]) == "a.zzz: no such key; expected one of lr, steps"


def test_a_long_listing_is_cut_and_counted():
    assert listing(range(3)) == "0, 1, 2"
    assert listing(range(20), limit=2) == "0, 1, ... (20 in all)"


def test_a_class_that_lacks_methods_is_refused_with_their_names():
    faults: list[str] = []
    assert (
        resolve_target({"_target_": "strategies.rules.exact.FactorRule"}, "x", ("strategies.",), faults)
        is None
    )
    assert faults[0].endswith("expected a concrete class that is defined there, got one without layer")

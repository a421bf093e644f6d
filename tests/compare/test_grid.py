"""A grid says what is compared; whatever is wrong with one is said by name before anything runs."""

import shlex
from pathlib import Path

import pytest

from fedsa_lora.compare.checking import check
from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import Entry, Grid, Quick, Run, read_grid
from fedsa_lora.compare.record import Record
from fedsa_lora.config.compose import load
from fedsa_lora.config.options import CONF
from fedsa_lora.errors import ConfigError
from fedsa_lora.runs.reading import read_jsonl

ROOT = Path(__file__).resolve().parents[2]


def grid(**changes) -> Grid:
    return Grid(
        **{
            "title": "Tiny",
            "regimes": {"plain": "experiment=smoke", "own": "experiment=smoke federation.rounds=2"},
            "methods": {"alone": "split=local_only head=local", "share A": "split=share_a head=local"},
            "reference": "alone",
            "seeds": [0, 1],
            "rates": [0.01],
            **changes,
        }
    )


def words(grid: Grid) -> dict[tuple[str, str], list[str]]:
    return {(entry.regime, entry.method): list(entry.words) for entry in grid.entries()}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            path.stem, marks=[pytest.mark.slow] * (path.stem == "methods")
        )  # 42 of them in six cells
        for path in sorted((CONF / "compare").glob("*.yaml"))
    ],
)
def test_every_method_of_a_shipped_grid_binds_and_has_words_of_its_own(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSA_LORA_AMAZON", str(tmp_path))
    shipped = read_grid(name)
    for part in (shipped, shipped.quickly()):
        entries = part.entries()
        assert len({(entry.regime, entry.words) for entry in entries}) == len(entries)
        assert {entry.regime for entry in entries} == set(part.regimes)
        by_method, by_regime = ({getattr(e, key): e for e in entries} for key in ("method", "regime"))
        for entry in {*by_method.values(), *by_regime.values()}:
            load(part.overrides(Run(entry, part.rates_for(entry.method)[0], part.seeds[0])))


def test_the_recorded_runs_are_those_of_the_shipped_grids():
    keys = {e.words for name in ("methods", "personalisation") for e in read_grid(name).entries()}
    for row in read_jsonl(ROOT / "docs" / "results" / "runs.jsonl"):
        assert tuple(row["words"]) in keys


def test_grids_share_the_runs_of_what_is_the_same_in_both(tmp_path):
    one, other = (grid(methods={"alone": "split=local_only head=local", "more": m}) for m in ("a=1", "a=2"))
    file, (entry, _) = tmp_path / "runs.jsonl", one.entries()[:2]
    record = Record(file)
    record.add(run := Run(entry, one.rates[0], 0), {"error": "for want of a result"})
    shared = Comparison.recorded(other, tmp_path / "other", file)
    assert shared.record.settled(run)
    assert len(shared.failures()) == 1, "of both regimes' reference the one that was run"


def test_the_words_of_a_grid_are_those_of_every_run_before_its_regimes():
    for entry, same in zip(grid(words="seed=3 name=all").entries(), grid().entries(), strict=True):
        assert entry.words == ("seed=3", "name=all", *same.words)


def test_what_a_regime_fixes_takes_the_place_of_what_a_method_says_and_equals_are_run_once():
    methods = {
        "alone": "split=local_only head=local",
        "FedIT": "split=share_ab head=shared codec=int8",
        "own head": "split=share_ab head=local codec=int8",
        "plain": "split=share_b",
    }
    made = words(grid(methods=methods, fixed={"own": "head=frozen downlink=int8"}))
    assert made["plain", "FedIT"] == ["experiment=smoke", "split=share_ab", "head=shared", "codec=int8"]
    assert ("plain", "own head") in made
    assert ("own", "own head") not in made
    smaller = ["experiment=smoke", "federation.rounds=2"]
    assert made["own", "FedIT"] == [*smaller, "split=share_ab", "head=frozen", "codec=int8", "downlink=int8"]
    assert made["own", "plain"] == [*smaller, "split=share_b", "head=frozen", "downlink=int8"]


def test_of_equal_methods_the_reference_is_the_one_that_is_kept():
    methods = {"shared head": "split=local_only head=shared", "alone": "split=local_only head=local"}
    made = words(grid(methods=methods, fixed={"own": "head=frozen"}))
    assert list(made) == [("plain", "shared head"), ("plain", "alone"), ("own", "alone")]


def test_methods_of_one_regime_alone_are_nowhere_else():
    made = words(grid(further={"own": {"share B": "split=share_b"}}))
    assert [key for key in made if key[1] == "share B"] == [("own", "share B")]


def test_a_quick_look_is_a_part_of_the_grid_with_words_of_its_own():
    whole = grid(
        quick=Quick(["own"], ["alone"], [7], "federation.clients=2"),
        fixed={"plain": "head=frozen", "own": "head=shared"},
        further={"own": {"share B": "split=share_b"}},
    )
    quick = whole.quickly()
    assert words(quick) == {("own", "alone"): [*words(whole)["own", "alone"], "federation.clients=2"]}
    assert quick.seeds == [7]
    with pytest.raises(ConfigError, match="has no block quick"):
        grid().quickly()


def test_a_method_with_rates_of_its_own_is_searched_among_those_alone(tmp_path):
    own = grid(rates_of={"share A": [0.5, 0.1]}, quick=Quick(["own"], ["alone"], [7]))
    file = tmp_path / "runs.jsonl"
    Record(file).add(Run(own.entries()[0], 0.01, 0), {"error": "for want of a result"})
    searched = {s.entry.method: s.rates for s in Comparison.recorded(own, tmp_path, file).searches}
    assert searched == {"alone": (0.01,), "share A": (0.5, 0.1)}
    assert own.quickly().rates_of == {}
    for wrong, said in (
        ({"share a": [0.1]}, "share A"),
        ({"share A": []}, "at least one"),
        ({"share A": [1, 1]}, "twice"),
    ):
        with pytest.raises(ConfigError, match=f"rates_of: share.*{said}"):
            grid(rates_of=wrong)


def test_a_clash_is_told_with_grid_regime_and_method_before_anything_runs():
    clash = {"alone": "split=local_only", "FedEx": "split=share_a strategy=fedex", "typo": "spilt=share_a"}
    further = {"own": {"late": "split=share_b lora.rr=2"}}
    with pytest.raises(ConfigError) as caught:
        check(grid(methods=clash, reference="alone", further=further), "mine")
    fedex, typo, late = caught.value.faults
    assert fedex.startswith("grid mine, method FedEx: ")
    assert "expected split=share_ab" in fedex
    assert typo == "grid mine, method typo: spilt: no such key (did you mean 'split'?)"
    assert late == "grid mine, method late: lora.rr: no such key (did you mean 'r'?)"


def test_a_fault_is_told_once_with_the_regimes_or_methods_that_have_it():
    def faults(**changes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            check(grid(**changes), "mine")
        assert str(caught.value).count("fault") == 1, "no list within a list"
        return [fault.partition(" is out of range")[0] for fault in caught.value.faults]

    one = "experiment=smoke"
    assert faults(words="trian.lr=1", where_it_fits=["share A"]) == [
        "trian: no such key (did you mean 'train'?)"
    ]
    steps = {"plain": f"{one} train.steps=-1", "own": one}
    assert faults(regimes=steps) == ["grid mine, regime plain: train.steps: -1"]
    methods = {"alone": "split=local_only", "share A": "split=share_a train.steps=-1"}
    assert faults(methods=methods) == ["grid mine, method share A: train.steps: -1"]
    regimes = {"plain": one, "own": f"{one} train.batch_size=-1", "next": f"{one} train.batch_size=-1"}
    assert faults(regimes=regimes) == ["grid mine, regime next, own: train.batch_size: -1"]


def test_a_method_may_run_only_where_it_fits_but_somewhere_it_must():
    clash = {"alone": "split=local_only", "FedEx": "split=share_ab strategy=fedex"}
    whole = grid(methods=clash, fixed={"own": "split=share_a"}, where_it_fits=["FedEx"])
    entries, notes = check(whole, "mine")
    assert [(entry.regime, entry.method) for entry in entries] == [
        ("plain", "alone"), ("plain", "FedEx"), ("own", "alone"),
    ]  # fmt: skip
    assert len(notes) == 1
    assert "FedEx does not fit own" in notes[0]
    with pytest.raises(ConfigError, match="FedEx fits no regime"):
        check(grid(methods=clash | {"FedEx": "strategy=fedex"}, where_it_fits=["FedEx"]), "mine")


def test_data_that_cannot_be_divided_are_told_before_anything_runs():
    regimes = {"plain": "experiment=smoke federation.clients=99999", "own": "experiment=smoke"}
    with pytest.raises(ConfigError, match=r"grid mine, regime plain: .*lower federation.clients"):
        check(grid(regimes=regimes), "mine")


def test_runs_that_are_compared_do_not_follow_the_memory_that_is_free():
    with pytest.raises(ConfigError, match=r"train\.batch_size=auto .*: expected a number"):
        check(grid(regimes={"plain": "experiment=smoke train.batch_size=auto"}), "tiny")


def test_rates_are_not_chosen_without_a_validation_part():
    regimes = {"plain": "experiment=smoke federation.validation_examples=0"}
    check(grid(regimes=regimes), "one rate needs none")
    with pytest.raises(ConfigError, match=r"rates are chosen with federation.validation_examples"):
        check(grid(regimes=regimes, rates=[0.01, 0.02]), "mine")


def test_a_place_is_filled_in_where_it_is_and_its_regime_left_out_where_it_is_not(tmp_path):
    regimes = {"plain": "experiment=smoke", "reviews": "experiment=smoke task=text task.dataset=REVIEWS"}
    place = tmp_path / 'a "folder"'
    whole = grid(regimes=regimes, places={"REVIEWS": str(place)})
    entries, notes = check(whole, "mine")
    assert {entry.regime for entry in entries} == {"plain"}
    assert notes == [f"reviews is left out: there is no folder {place}"]
    place.mkdir()
    (place / "train.csv").write_text("text,label\n" + "".join(f"x{i},{i % 2}\n" for i in range(200)))
    entries, notes = check(whole, "mine")
    assert {entry.regime for entry in entries} == {"plain", "reviews"}
    assert "task.dataset=REVIEWS" in entries[-1].words, "a record does not tell where data lie"
    assert load(whole.overrides(Run(entries[-1], 0.01, 0))).task.dataset == str(place)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": "alnoe"}, "reference: alnoe: no such method .did you mean 'alone'?"),
        ({"fixed": {"plian": "head=frozen"}}, "fixed: plian: no such regime"),
        ({"further": {"nowhere": {}}}, "further: nowhere: no such regime"),
        ({"where_it_fits": ["x"]}, "where_it_fits: x: no such method"),
        ({"quick": Quick(["x"], ["alone"], [0])}, "quick.regimes: x: no such regime"),
        ({"quick": Quick(["own"], ["share A"], [0])}, "the reference 'alone' is missing"),
        ({"seeds": []}, "seeds: expected at least one"),
        ({"rates": [0.1, 0.1]}, "rates: .* has one twice"),
        ({"methods": {"alone": "title='open"}}, "No closing quotation; close every quote"),
    ],
)
def test_a_name_that_is_none_is_told(changes, said):
    with pytest.raises(ConfigError, match=said):
        grid(**changes)


def test_a_grid_of_the_user_is_read_and_its_faults_are_listed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Mine\nseeds: [0]\nrates: [0.01]\nreference: alone\n"
        "regimes: {plain: experiment=smoke}\nmethods: {alone: split=local_only}\n"
    )
    expected = ("experiment=smoke", "split=local_only")
    assert read_grid(str(path)).entries() == [Entry("plain", "alone", expected)]
    path.write_text(path.read_text().replace("seeds", "sedes").replace("[0.01]", "fast"))
    with pytest.raises(ConfigError) as caught:
        read_grid(str(path))
    for fault in ("did you mean 'seeds'?", "rates: expected a list", "seeds: missing", str(path)):
        assert fault in str(caught.value)
    with pytest.raises(ConfigError, match=r"metods: no such grid.*'methods'"):
        read_grid("metods")


def test_overrides_of_a_run_can_be_typed_as_a_command():
    entry = grid().entries()[0]
    text = shlex.join(grid().overrides(Run(entry, 0.02, 5)))
    config = load(text)
    assert (config.train.lr, config.seed, config.evaluation.every) == (0.02, 5, 3)
    assert (config.evaluation.before, config.evaluation.local_only, config.run.report) == (False,) * 3


def test_a_place_may_begin_a_longer_path(tmp_path):
    (tmp_path / "held" / "trec").mkdir(parents=True)
    found = grid(places={"HELD": str(tmp_path / "held")}, regimes={"r": "task=text task.dataset=HELD/trec"})
    assert found.located("task.dataset=HELD/trec") == f'task.dataset="{tmp_path}/held/trec"'
    assert found.located("task.dataset='HELD/trec/a b.csv'") == f'task.dataset="{tmp_path}/held/trec/a b.csv"'
    assert found.located("task.dataset=OTHER/trec") == "task.dataset=OTHER/trec"
    assert found.missing() == {}
    gone = grid(places={"HELD": str(tmp_path / "gone")}, regimes={"r": "task=text task.dataset=HELD/trec"})
    assert gone.missing() == {"r": str(tmp_path / "gone")}


def test_a_place_within_a_value_is_named_as_the_fault_before_anything_runs(tmp_path):
    words = "experiment=smoke task=text task.files={train:HELD/a.csv}"
    found = grid(places={"HELD": str(tmp_path)}, regimes={"r": words})
    fault = r"  - task\.files=\{train:HELD/a\.csv\}: the place HELD must begin the value"
    with pytest.raises(ConfigError, match=fault) as caught:
        check(found, "mine")
    assert str(caught.value).count("the place HELD") == 1, "once, not for each method"

"""A run that was broken off goes on to the same bits as one that was not."""

import errno
import json
import os
import shlex
import shutil
from contextlib import closing, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from disk import full, watching
from test_methods import checkpoint, rows, states

from fedsa_lora.config.compose import read_config, to_yaml
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.exchange.arrays import digest
from fedsa_lora.files import Held
from fedsa_lora.launch.federate import end
from fedsa_lora.launch.resuming import differences, is_complete, to_resume, with_defaults
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_run
from strategies.fedsa import FedSA

WORDS = (
    "run.report=false", "federation.rounds=4", "federation.clients=3", "run.keep_generations=9",
    "evaluation.every=2", "evaluation.before=false", "evaluation.local_only=false", "train.steps=2",
)  # fmt: skip
TIMES = ("seconds", "fit_seconds", "bytes_up")  # a reply tells its seconds, in more digits or fewer
METHODS = {
    "FedSA": (),
    "FedSA with all that is measured": (
        "evaluation.every=1", "evaluation.before=true", "evaluation.local_only=true",
    ),
    "FedAdam": ("strategy=fedadam",),
    "FedAvgM": ("strategy=fedavgm",),
    "importance": ("split=importance", "split.threshold=0.4"),
    "least variance": ("split=least_variance", "split.count=1", "split.measure=2"),
    "top-k with error feedback, both ways": ("codec=topk_int8", "downlink=topk_int8"),
    "soft": ("split=soft", "head=soft"),
    "merged into the backbone": ("split=share_ab", "strategy=fedex"),
    "groups": ("clusters=updates", "clusters.after=1"),
    "groups, each by importance": ("clusters=updates", "clusters.after=1", "split=importance"),
    "Ditto": ("personalisation=ditto",),
    "experts": ("split=share_ab", "personalisation=experts"),
    "updates beyond the median rejected": (
        "bounds=median", "bounds.median_factor=1.0", "bounds.action=reject", "federation.min_results=0.3",
    ),
    "a part of the clients": ("strategy.fraction_fit=0.5", "strategy.min_fit_clients=2", "downlink=int8"),
}  # fmt: skip
LIKE_ANOTHER = ("FedSA", "FedAvgM", "least variance", "groups")  # what they keep, one of the others keeps


class Broken(Exception):
    """Stands for whatever ends a server."""


def broken(monkeypatch, words, phase: str, round_: int):
    """A run whose server ends when it begins a phase of a round."""
    with monkeypatch.context() as patch:
        begin = getattr(FedSA, phase)

        def ends(self, server_round, *arguments, **named):
            if server_round == round_:
                raise Broken
            return begin(self, server_round, *arguments, **named)

        patch.setattr(FedSA, phase, ends)
        with pytest.raises(Broken):
            run_in_process(words)


def untimed(path, name):
    kept = [{key: value for key, value in row.items() if key not in TIMES} for row in rows(path, name)]
    return sorted(kept, key=lambda row: json.dumps([row["round"], row.get("client"), row.get("phase")]))


def assert_same_run(one, two):
    for name in ("rounds", "clients"):
        assert untimed(one, name) == untimed(two, name)
    for first, second in zip(_everything(one), _everything(two), strict=True):
        assert digest(first.tensors) == digest(second.tensors)
        assert first.memory.keys() == second.memory.keys()
        for key, array in first.memory.items():
            assert np.array_equal(array, second.memory[key]), key


def _everything(path):
    return [checkpoint(path), *(state for _, state in sorted(states(path).items()))]


@pytest.fixture(scope="module")
def whole(run_once):
    return lambda words: run_once(*WORDS, *words)


@pytest.mark.sampled(5)
@pytest.mark.case(20)
@pytest.mark.parametrize(
    "words",
    [pytest.param(METHODS[n], id=n, marks=[pytest.mark.slow] * (n in LIKE_ANOTHER)) for n in METHODS],
)
def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not_broken_off(
    whole, tmp_path, monkeypatch, words
):
    asked = ["experiment=smoke", *WORDS, *words, f"run.dir={tmp_path / 'run'}"]
    broken(monkeypatch, asked, "aggregate_fit", 3)
    assert [row["round"] for row in rows(tmp_path / "run")] == [1, 2]
    run_in_process([*asked, "run.resume=true"])
    assert_same_run(tmp_path / "run", whole(words))
    told = json.loads((tmp_path / "run" / "environment.json").read_text())["resumed"]
    assert [row["after_round"] for row in told] == [2]


@pytest.mark.sampled(3)
@pytest.mark.case(20)
@pytest.mark.parametrize("phase", ["configure_fit", "configure_evaluate", "aggregate_evaluate"])
def test_wherever_a_round_is_broken_off_it_is_made_again_whole(whole, tmp_path, monkeypatch, phase):
    words = (*METHODS["top-k with error feedback, both ways"], "evaluation.every=1")
    asked = ["experiment=smoke", *WORDS, *words, f"run.dir={tmp_path / 'run'}"]
    broken(monkeypatch, asked, phase, 2)
    broken(monkeypatch, [*asked, "run.resume=true"], phase, 4)
    run_in_process([*asked, "run.resume=true"])
    assert_same_run(tmp_path / "run", whole(words))


@pytest.mark.case(23)
def test_a_checkpoint_that_was_altered_is_passed_over(whole, tmp_path, monkeypatch, caplog):
    asked = ["experiment=smoke", *WORDS, f"run.dir={tmp_path / 'run'}"]
    broken(monkeypatch, asked, "aggregate_fit", 4)
    path = tmp_path / "run" / "checkpoints" / "round-000003.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    run_in_process([*asked, "run.resume=true"])
    assert_same_run(tmp_path / "run", whole(()))
    assert "round 3 is repeated" in caplog.text


@pytest.mark.case(22)
def test_a_disk_that_is_full_when_a_round_is_kept_ends_the_run_and_the_round_before_is_gone_on_with(
    whole, tmp_path, monkeypatch
):
    asked = ["experiment=smoke", *WORDS, f"run.dir={tmp_path / 'run'}"]
    sync, folder = os.fsync, tmp_path / "run" / "checkpoints"

    def full(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent == folder and path.name.startswith(".round-000003"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("fedsa_lora.files.os.fsync", full)
        with pytest.raises(
            RunError, match=r"round-000003.* No space left on device; .*unchanged.*check space"
        ):
            run_in_process(asked)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "No space left on device" in status["reason"]
    assert sorted(path.name for path in folder.iterdir()) == [f"round-00000{r}.safetensors" for r in (1, 2)]
    run_in_process([*asked, "run.resume=true"])
    assert_same_run(tmp_path / "run", whole(()))


def test_a_run_without_a_whole_round_cannot_be_resumed(tmp_path, monkeypatch):
    asked = ["experiment=smoke", *WORDS, f"run.dir={tmp_path / 'run'}"]
    broken(monkeypatch, asked, "aggregate_fit", 1)
    with pytest.raises(RunError, match="run it again"):
        run_in_process([*asked, "run.resume=true"])


@pytest.fixture(scope="module")
def finished(run_smoke):
    return run_smoke("federation.rounds=1", "evaluation.local_only=false", "evaluation.before_each=true")


@pytest.mark.parametrize(
    ("words", "allow", "told"),
    [
        (["train.lr=1.0"], True, r"train\.lr: 0\.01 -> 1\.0"),
        (["split=share_b", "federation.rounds=2"], True, r"split\.A: shared -> local"),
        (["seed=1"], True, "seed: 0 -> 1"),
        (["federation.rounds=2"], False, r"federation\.rounds: 1 -> 2"),
        ([], False, "is complete: to train longer"),
        (["evaluation.every=0"], True, "is complete: to train longer"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_told_with_its_differences(finished, words, allow, told):
    with pytest.raises((ConfigError, RunError), match=told):
        to_resume(finished, words, allow)


def test_a_run_can_be_made_longer_where_that_is_allowed(finished, tmp_path, run_smoke):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    config, words = to_resume(copy, ["federation.rounds=3"], allow=True)
    assert config.federation.rounds == 3
    run_in_process([*words, f"run.dir={copy}", "run.resume=true"])
    each = ("evaluation.local_only=false", "evaluation.before_each=true")
    whole = run_smoke("federation.rounds=3", *each)
    assert_same_run(copy, whole)


def test_a_run_that_goes_on_has_no_report_of_how_it_ended_before(tmp_path, monkeypatch):
    """One that makes no report does so neither at its end nor where it is stopped."""
    run = tmp_path / "run"
    brief = ["run.report=false", "evaluation.local_only=false", "federation.clients=2", "federation.rounds=2"]
    words = ["experiment=smoke", *brief, f"run.dir={run}"]
    broken(monkeypatch, words, "configure_fit", 2)
    with closing(Held(run)) as begun:  # as the command line ends what was stopped
        end(begun, "stopped", "stopped after round 1 of 2", report=False)
        assert not (run / "report.html").exists()
        end(begun, "stopped", "stopped after round 1 of 2", report=True)
    assert "stopped" in (run / "report.html").read_text()
    run_in_process([*words, "run.resume=true"])
    assert is_complete(run)
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_what_a_resumption_changed_holds_for_the_table_the_report_and_the_next_resumption(
    tmp_path, monkeypatch
):
    run = tmp_path / "run"
    few = ["run.report=true", "evaluation.local_only=false", "federation.clients=2"]
    broken(
        monkeypatch, ["experiment=smoke", "federation.rounds=9", *few, f"run.dir={run}"], "configure_fit", 3
    )
    changed = ["federation.rounds=4", "evaluation.every=2"]
    _, words = to_resume(run, changed, allow=True)
    again = [*words, f"run.dir={run}", "run.resume=true", "run.allow_changed_data=false"]
    broken(monkeypatch, again, "configure_fit", 4)
    config, words = to_resume(run)  # which needs no word about what may change
    assert (config.federation.rounds, config.evaluation.every) == (4, 2)
    run_in_process([*words, f"run.dir={run}", "run.resume=true"])
    with pytest.raises(RunError, match="is complete"):
        to_resume(run)
    known = json.loads((run / "environment.json").read_text())
    keys = [word.partition("=")[0] for word in shlex.split(known["command"])[2:]]
    assert len(set(keys)) == len(keys)
    assert not {"run.dir", "run.resume", "run.allow_changed_data"} & set(keys)
    assert [row["after_round"] for row in known["resumed"]] == [2, 3]
    told = read_run(run).changes
    assert (told["federation.rounds"], told["evaluation.every"]) == ("4", "2")
    assert "federation.rounds=9" not in (run / "report.html").read_text()


def test_a_config_differs_from_itself_in_nothing_and_in_nested_keys_by_their_path():
    one = {"title": "a", "train": {"lr": 1, "steps": 2}, "lora": None}
    assert list(differences(one, one | {"title": "b"})) == []
    other = {"title": "a", "train": {"lr": 2, "steps": 2}, "lora": {"r": 8}}
    assert list(differences(one, other)) == ["lora: None -> {'r': 8}", "train.lr: 1 -> 2"]


@pytest.mark.case(20)
@pytest.mark.case(40)
def test_a_longer_run_that_is_interrupted_at_any_write_of_its_beginning_is_not_called_complete(
    finished, tmp_path
):
    number, longer = 0, ["federation.rounds=3"]
    while True:
        number += 1
        copy = tmp_path / f"run{number}"
        shutil.copytree(finished, copy)
        config, _ = to_resume(copy, longer, allow=True)
        with watching(copy, full(number)) as watched, suppress(RunError):
            RunDirectory.resume(config, "fedsa-lora run experiment=smoke federation.rounds=3").close()
        if len(watched.seen) < number:
            break
        assert ".status.json" in watched.seen[0].name, "before all else"
        status = json.loads((copy / "status.json").read_text())
        assert status["state"] == "failed"
        assert "No space left on device" in status["reason"]
        assert not is_complete(copy)
        assert to_resume(copy, longer, allow=True)[0].federation.rounds == 3
    assert number > 6


@pytest.mark.case(36)
def test_a_run_that_says_completed_with_fewer_rounds_than_its_config_asks_for_is_resumed(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    assert is_complete(copy)
    assert not is_complete(copy, rounds=3), "what was asked for now"
    config, _ = to_resume(copy, ["federation.rounds=3"], allow=True)
    (copy / "config.yaml").write_text(to_yaml(config))
    assert not is_complete(copy)
    assert to_resume(copy, ["federation.rounds=3"], allow=True)[0].federation.rounds == 3


def test_a_key_that_an_earlier_version_did_not_have_is_no_difference(finished):
    before = read_config(finished)
    older = deepcopy(before.resolved)
    del older["federation"]["clients_per_node"], older["run"]["allow_changed_data"]
    known = with_defaults(replace(before, resolved=older), before.resolved)
    assert list(differences(known, before.resolved)) == []
    other = deepcopy(before.resolved)
    other["federation"]["clients_per_node"] = 2
    assert list(differences(known, other)) == ["federation.clients_per_node: 1 -> 2"]

"""The parts of a model that is cut are those of the whole one, and each side makes its own alone."""

import pytest
import torch
from cut_cases import TINY

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ModelError
from fedsa_lora.server.build import build_trunk, skeleton


def test_each_side_holds_its_own_weights_alone():
    config = load(TINY)
    client, empty = build.model(config).module, skeleton(config)
    server = build_trunk(config, empty).model.module
    whole_model = dict(build.model(config.whole).module.named_parameters())
    mine, its = dict(client.named_parameters()), dict(server.named_parameters())
    assert not mine.keys() & its.keys()
    assert mine.keys() | its.keys() == whole_model.keys()
    assert not any(map(config.cut.of_client, its))
    for name, parameter in {**mine, **its}.items():
        assert "lora_" in name or torch.equal(parameter, whole_model[name])


@pytest.mark.parametrize(
    "patterns",
    [
        (r"lora.rank_pattern={layers\.0\..*: 4}",),  # of the client, as a refusal has it
        (r"lora.rank_pattern={layers\.2\..*: 2}", r"lora.alpha_pattern={layers\.2\..*: 3}"),  # of the server
        (r"lora.rank_pattern={q_proj: 2, layers\.4\.self_attn\.v_proj: 1}",),
    ],
)
def test_ranks_by_block_are_those_of_the_whole_model_in_each_part(patterns):
    config = load([*TINY, *patterns])
    empty = skeleton(config)
    client, server = build.model(config), build_trunk(config, skeleton(config)).model
    assert {*client.layout} | {*server.layout} == {*empty.layout} != {*skeleton(load(TINY)).layout}
    assert client.scales | server.scales == empty.scales


def test_ranks_of_a_layer_that_no_part_has_are_refused():
    with pytest.raises(ModelError, match="matches none of the adapted layers"):
        skeleton(load([*TINY, r"lora.rank_pattern={layers\.9\..*: 4}"]))


def test_each_process_makes_the_whole_model_once_and_without_its_weights(monkeypatch):
    config, made = load(TINY), []
    build_model = type(config.task).build_model

    def counted(task, *, seed, empty=False):
        made.append(empty)
        return build_model(task, seed=seed, empty=empty)

    monkeypatch.setattr(type(config.task), "build_model", counted)
    build.workbench(config)
    assert made == [True]
    build_trunk(config, skeleton(config))
    assert made == [True, True]

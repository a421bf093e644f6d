"""Config files are composed to what Hydra makes of them, those of a user's own among them."""

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import YAMLError

from fedsa_lora.config.compose import _of_files, _of_hydra
from fedsa_lora.config.composition import Unusual, composed_files
from fedsa_lora.config.options import CONF, Options, groups

CHOICES = [(f"{group}={name}",) for group in groups() if group != "compare" for name in Options().of(group)]
TOGETHER = [
    ("experiment=paper/mnli", "regime=dirichlet_05", "train=sgd", "downlink=topk_int8"),
    ("experiment=unlearn/tofu/default", "partition=own", "federation=deployment", "lora=none"),
    ("task=clinc150", "partition=natural", "lora=vit_ranks", "clusters=updates"),
]
WHOLE = "# @package _global_\n"
OWN = {
    "what stands beside it": ("split", "defaults: [share_b]\nA: frozen\n"),
    "an override, and none of its words": ("experiment", f"{WHOLE}defaults: [override /split: share_b]\n"),
    "a value in the place of settings": ("experiment", f"{WHOLE}train: 3\n"),
    "settings in the place of an interpolation": (
        "experiment",
        f"{WHOLE}defaults: [override /strategy: dp_fixed_clipping]\n"
        "strategy: {num_sampled_clients: {a: 1}}\n",
    ),
    "the settings of another group": ("experiment", f"{WHOLE}defaults: [/train/sgd@train]\n"),
    "a group that it has anew": ("experiment", WHOLE + "defaults: [{/codec@second: topk}]\n"),
    "an option by interpolation": ("experiment", WHOLE + "defaults: ['/split/${head}@_here_']\n"),
    "an override that is not at the end": (
        "experiment", f"{WHOLE}defaults: [override /split: share_b, /train/sgd@_here_]\n"
    ),
    "a file that is not there": ("experiment", f"{WHOLE}defaults: [/split/nowhere@_here_]\n"),
    "a package below another": ("experiment", "# @package train.more\nlr: 1\n"),
    "no settings": ("experiment", "[1, 2]\n"),
    "no YAML": ("experiment", "a: [\n"),
}  # fmt: skip


def composed_by(compose, *of):
    """The settings, or the error that there are none."""
    try:
        return list(OmegaConf.to_container(compose(*of)).items())
    except (HydraException, YAMLError, OSError, ValueError, TypeError) as error:
        return str(error)


@pytest.mark.parametrize("words", TOGETHER, ids=" ".join)
def test_choices_together_are_composed_as_by_hydra(words):
    assert [*composed_files(words, [CONF]).items()] == composed_by(_of_hydra, words, Options())


@pytest.mark.sampled(40)
@pytest.mark.parametrize("words", CHOICES, ids=" ".join)
def test_every_option_is_composed_as_by_hydra(words):
    assert [*composed_files(words, [CONF]).items()] == composed_by(_of_hydra, words, Options())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("written", OWN.values(), ids=OWN)
def test_whatever_a_users_file_asks_for_is_composed_as_by_hydra(tmp_path, written):
    group, text = written
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(text)
    of = ((f"{group}=mine", "head=shared"), Options(own=tmp_path))
    assert composed_by(_of_files, *of, None) == composed_by(_of_hydra, *of)


@pytest.mark.parametrize(
    "word", ["experiment=nowhere", "compare=clip", "split=1", "regime=null", "+split=soft"]
)
def test_a_choice_that_is_none_is_left_to_hydra(word):
    with pytest.raises(Unusual):
        composed_files([word], [CONF])

"""Settings are written and read as OmegaConf does it, whatever values they have."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedsa_lora.config.yaml_text import dump, parse

LIKE_OTHERS = (
    "1e-3",
    "1.e3",
    "-.5E3",
    "1_0e5",
    "2024-01-01",
    "yes",
    "null",
    "0x1f",
    "1:30",
    ".nan",
    "",
    " a",
    "a: #",
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.sampled_from(LIKE_OTHERS),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$\ufeff\u2028\u2029\x85")),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["0", "a", "lr"]), inner)
)


@given(st.dictionaries(st.sampled_from(["seed", "train", "1"]), VALUES))
def test_what_is_written_is_read_back_by_ourselves_and_by_omegaconf(settings):
    text = dump(settings)
    assert parse(text) == settings
    assert OmegaConf.to_container(OmegaConf.create(text)) == settings


@given(st.dictionaries(st.sampled_from(["seed", "train"]), VALUES))
def test_what_omegaconf_wrote_is_read(settings):
    assert parse(OmegaConf.to_yaml(OmegaConf.create(settings))) == settings


def test_a_key_that_is_no_text_is_refused():
    for text in ("? [a, b]\n: 1\n", "? {a: b}\n: 1\n"):
        with pytest.raises(yaml.YAMLError, match="unhashable key"):
            parse(text)


def test_a_key_that_stands_twice_is_refused_and_no_object_is_made():
    with pytest.raises(yaml.YAMLError, match="duplicate key seed"):
        parse("seed: 1\nseed: 2\n")
    with pytest.raises(yaml.YAMLError):
        parse("a: !!python/object/apply:os.getcwd []\n")

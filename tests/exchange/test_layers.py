"""Splits by depth: whole blocks, counted as the model counts them, and nothing beside the blocks."""

import pytest

from fedsa_lora.errors import ConfigError, SplitError
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.layers import LayerWise, blocks_of

BLOCKS = (0, 1, 2, 3, 10, 11)  # as numbers, not as text, 2 is before 10


def model(*blocks: int) -> Layout:
    """Adapters on query and value of each block, on the embeddings and on a pooler; and a head."""
    layers = [f"bert.encoder.layer.{n}.attention.self.{at}" for n in blocks for at in ("query", "value")]
    layers += ["bert.embeddings.word_embeddings", "bert.pooler.dense"]
    specs = [TensorSpec(f"{layer}.lora_{f}.weight", (2, 2), f, layer) for layer in layers for f in "AB"]
    return Layout((*specs, TensorSpec("classifier.0.weight", (3, 4), "head", "classifier.0")))


def shared_blocks(policy: LayerWise, layout: Layout) -> list[int]:
    """The blocks of which every A is shared; all else must be local."""
    parts, number_of = policy(layout), blocks_of(layout)
    found = {number_of[spec.layer] for spec in layout if spec.name in parts.shared}
    whole = {spec.name for spec in layout if spec.role == "A" and number_of.get(spec.layer) in found}
    assert parts.shared == whole
    assert parts.local == set(layout.names) - whole
    return sorted(found)


def test_the_block_of_a_layer_is_the_first_number_in_its_path_and_some_have_none():
    numbers = blocks_of(model(*BLOCKS))
    assert sorted(set(numbers.values())) == sorted(BLOCKS)
    assert numbers["bert.encoder.layer.10.attention.self.value"] == 10
    assert {"bert.embeddings.word_embeddings", "bert.pooler.dense", "classifier.0"}.isdisjoint(numbers)
    nested = Layout(
        (TensorSpec("a", (1, 1), "A", "swin.stage.3.blocks.7.q"), TensorSpec("b", (1,), "A", "2"))
    )
    assert blocks_of(nested) == {"swin.stage.3.blocks.7.q": 3, "2": 2}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"first": 2}, [0, 1]),
        ({"last": 2}, [10, 11]),
        ({"last": 3}, [3, 10, 11]),
        ({"first": 6}, list(BLOCKS)),
        ({"every": 1}, list(BLOCKS)),
        ({"every": 2}, [0, 2, 10]),
        ({"every": 6}, [0]),
        ({"layers": (11, 2)}, [2, 11]),
    ],
)
def test_whole_blocks_are_shared_and_embeddings_never(choice, expected):
    assert shared_blocks(LayerWise(**choice), model(*BLOCKS)) == expected


def test_every_nth_is_counted_from_the_first_layer_that_has_adapters():
    assert shared_blocks(LayerWise(every=2), model(1, 2, 3, 4, 5)) == [1, 3, 5]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"layers": (0, 5, 99)}, r"split.layers=\[0, 5, 99\]: no layers \[5, 99\]; there are \[0, 1, 2, 3,"),
        ({"layers": (-1,)}, r"no layers \[-1\]"),
        ({"first": 7}, "asks for 7 layers with adapters, the model has 6"),
        ({"last": 7}, "asks for 7 layers"),
        ({"every": 7}, "asks for 7 layers"),
    ],
)
def test_layers_that_the_model_lacks_are_named(choice, said):
    with pytest.raises(SplitError, match=said):
        LayerWise(**choice)(model(*BLOCKS))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({}, "exactly one of first, last, every and layers, got none"),
        ({"first": 1, "last": 1}, "exactly one of .*'first': 1, 'last': 1"),
        ({"first": 0}, "'first': 0}: expected a number of layers, at least 1"),
        ({"every": -2}, "'every': -2}: expected a number"),
        ({"layers": ()}, r"'layers': \(\)}: expected a number"),
    ],
)
def test_exactly_one_sound_choice_is_made(choice, said):
    with pytest.raises(ConfigError, match=said):
        LayerWise(**choice)


def test_words_say_which_layers():
    assert LayerWise(last=3).words()["A"] == "shared in layers: last 3"
    assert LayerWise(layers=(1, 4), head="frozen").words()["head"] == "frozen"

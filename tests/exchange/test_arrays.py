"""Layouts: packing loses nothing, depends on names alone, and fits exactly or not at all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import LayoutError
from fedsa_lora.exchange.arrays import ROLES, Layout, TensorSpec, digest

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
SPECS = st.dictionaries(
    st.text(min_size=1, max_size=6), st.tuples(SHAPES, st.sampled_from(ROLES)), max_size=6
)
LAYOUTS = SPECS.map(lambda found: Layout(tuple(TensorSpec(n, s, r) for n, (s, r) in found.items())))


def arrays_for(layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in layout}


def layout() -> Layout:
    return Layout((TensorSpec("a", (2, 3), "A"), TensorSpec("b", (1, 4), "B")))


@settings(max_examples=60, deadline=None)
@given(LAYOUTS)
def test_unpack_gives_back_what_was_packed(layout):
    arrays = arrays_for(layout)
    vector = layout.pack(arrays)
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    unpacked = layout.unpack(vector)
    assert list(unpacked) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(unpacked[name], array, strict=True)


def test_unpacked_arrays_are_views_and_packed_ones_are_not():
    arrays = arrays_for(layout())
    vector = layout().pack(arrays)
    layout().unpack(vector)["a"][1, 2] = 77.0
    assert 77.0 in vector
    assert 77.0 not in arrays["a"]


def test_one_tensor_is_packed_into_memory_of_its_own():
    alone = layout().select({"a"})
    arrays = arrays_for(alone)
    alone.pack(arrays)[:] = 77.0
    assert 77.0 not in arrays["a"]


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.randoms())
def test_neither_layout_nor_vector_depends_on_the_order_of_insertion(layout, random):
    specs, arrays = list(layout), arrays_for(layout)
    random.shuffle(specs)
    shuffled = Layout(tuple(specs))
    assert shuffled == layout
    assert shuffled.digest == layout.digest
    mixed = {spec.name: arrays[spec.name] for spec in specs}
    np.testing.assert_array_equal(shuffled.pack(mixed), layout.pack(arrays))
    assert digest(mixed) == digest(arrays)


def test_memory_order_does_not_change_the_vector():
    arrays = arrays_for(layout())
    fortran = {name: np.asfortranarray(array) for name, array in arrays.items()}
    np.testing.assert_array_equal(layout().pack(fortran), layout().pack(arrays))
    assert digest(fortran) == digest(arrays)


@pytest.mark.parametrize("change", [{"name": "c"}, {"shape": (3, 2)}, {"shape": (6,)}, {"role": "head"}])
def test_another_name_shape_or_role_is_another_digest(change):
    first, second = layout()
    assert Layout((replace(first, **change), second)).digest != layout().digest
    assert Layout((first,)).digest != layout().digest


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda arrays: arrays.pop("a"), "missing ['a']"),
        (lambda arrays: arrays.update(c=arrays["a"]), "extra ['c']"),
        (lambda arrays: arrays.update(a=arrays["a"].astype(np.float64)), "a: .*got float64"),
        (lambda arrays: arrays.update(a=arrays["a"].astype(np.complex64)), "a: .*got complex64"),
        (lambda arrays: arrays.update(b=arrays["b"][0]), r"b: .*\(1, 4\), got float32 \(4,\)"),
        (lambda arrays: arrays.update(b=np.zeros((1, 1), np.float32)), r"b: .*got float32 \(1, 1\)"),
        (lambda arrays: arrays.update(a=arrays["a"].T), r"a: .*got float32 \(3, 2\)"),
    ],
)
def test_anything_but_an_exact_fit_is_refused_by_name(fault, named):
    arrays = arrays_for(layout())
    fault(arrays)
    pattern = named if ".*" in named else named.replace("[", r"\[").replace("]", r"\]")
    for check in (layout().check, layout().pack):
        with pytest.raises(LayoutError, match=pattern):
            check(arrays)


@pytest.mark.parametrize(
    "vector",
    [np.zeros(9, np.float32), np.zeros(11, np.float32), np.zeros(10), np.zeros((1, 10), np.float32)],
)
def test_a_vector_of_another_size_dtype_or_rank_is_not_unpacked(vector):
    with pytest.raises(LayoutError, match=r"expected float32 \(10,\)"):
        layout().unpack(vector)


def test_two_tensors_of_one_name_are_refused():
    spec = TensorSpec("twice", (1,), "A")
    with pytest.raises(LayoutError, match="twice"):
        Layout((spec, replace(spec, shape=(2,))))


def test_an_empty_layout_packs_into_an_empty_vector():
    empty = layout().select(())
    assert empty.size == 0
    vector = empty.pack({})
    assert vector.shape == (0,)
    assert vector.dtype == np.float32
    assert empty.unpack(vector) == {}
    with pytest.raises(LayoutError, match="extra"):
        empty.pack(arrays_for(layout()))


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.data())
def test_a_selection_and_its_complement_add_up(layout, data):
    chosen = data.draw(st.sets(st.sampled_from(layout.names))) if layout.names else set()
    part, rest = layout.select(chosen), layout.select(set(layout.names) - chosen)
    assert set(part.names) == chosen
    assert part.size + rest.size == layout.size
    for role in ROLES:
        assert part.count(role) + rest.count(role) == layout.count(role)


def test_selecting_an_unknown_name_names_it():
    with pytest.raises(LayoutError, match="nobody"):
        layout().select({"a", "nobody"})


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays["a"].__setitem__((0, 0), np.nextafter(arrays["a"][0, 0], np.float32(9))),
        lambda arrays: arrays["a"].__setitem__((0, 0), -0.0),
        lambda arrays: arrays.update(a=arrays["a"].reshape(3, 2)),
        lambda arrays: arrays.update(c=arrays.pop("a")),
        lambda arrays: arrays.update(a=arrays["a"].view(np.int32)),
    ],
)
def test_the_digest_of_arrays_sees_every_bit_name_shape_and_dtype(change):
    arrays = arrays_for(layout())
    arrays["a"][0, 0] = 0.0
    before = digest(arrays)
    change(arrays)
    assert digest(arrays) != before

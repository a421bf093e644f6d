"""Layouts: packing loses nothing, depends on names alone, and fits exactly or not at all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import LayoutError
from fedsa_lora.exchange.arrays import ROLES, Layout, TensorSpec, cut, digest, padded

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
SPECS = st.dictionaries(
    st.text(min_size=1, max_size=6), st.tuples(SHAPES, st.sampled_from(ROLES)), max_size=6
)
LAYOUTS = SPECS.map(lambda found: Layout(tuple(TensorSpec(n, s, r) for n, (s, r) in found.items())))
# A (r, d_in) and B (d_out, r) of one rank, also as those of a convolution, vectors and a head
ADAPTERS = st.builds(
    lambda rank, sizes: Layout(
        tuple(
            TensorSpec(f"{i}.{role}", shape, role, str(i))
            for i, (d_out, d_in, kind) in enumerate(sizes)
            for role, shape in {
                "matrix": (("A", (rank, d_in)), ("B", (d_out, rank))),
                "kernel": (("A", (rank, d_in, 2, 1)), ("B", (d_out, rank, 1, 1))),
                "vector": (("A", (d_in,)), ("B", (d_out,))),
                "head": (("head", (d_out, d_in)),),
            }[kind]
        )
    ),
    st.integers(3, 5),
    st.lists(
        st.tuples(
            st.integers(2, 4), st.integers(2, 4), st.sampled_from(["matrix", "kernel", "vector", "head"])
        ),
        min_size=1,
        max_size=4,
    ),
)


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


@settings(max_examples=60, deadline=None)
@given(LAYOUTS)
def test_a_span_is_where_packing_puts_a_tensor_and_spans_fill_the_vector(layout):
    arrays = arrays_for(layout)
    vector = layout.pack(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(vector[layout.span(name)], array.ravel())
    filled = [place for name in layout.names for place in range(*layout.span(name).indices(layout.size))]
    assert filled == list(range(layout.size))


@settings(max_examples=80, deadline=None)
@given(ADAPTERS, st.integers(1, 6), st.data())
def test_an_index_picks_what_packing_the_cut_arrays_gives_and_puts_it_back(layout, rank, data):
    chosen = data.draw(st.sets(st.sampled_from(layout.names)) | st.just(set(layout.names)))
    part, arrays = layout.select(chosen).limited(rank), arrays_for(layout)
    vector, small = layout.pack(arrays), part.pack(cut(arrays, part))
    index = layout.index(part)
    np.testing.assert_array_equal(vector if index is None else vector[index], small, strict=True)
    assert (index is None) == (part == layout)
    if index is not None:
        assert (np.diff(index) > 0).all()
        back = np.zeros(layout.size, np.float32)
        back[index] = small
        whole = padded(part.unpack(small), layout.select(chosen))
        rest = {spec.name: np.zeros(spec.shape, np.float32) for spec in layout if spec.name not in chosen}
        np.testing.assert_array_equal(back, layout.pack(whole | rest))


@settings(max_examples=60, deadline=None)
@given(ADAPTERS, st.integers(1, 6))
def test_a_lower_rank_bounds_rows_of_a_and_columns_of_b_and_nothing_else(layout, rank):
    limited = layout.limited(rank)
    assert limited.names == layout.names
    for before, after in zip(layout, limited, strict=True):
        axis = {"A": 0, "B": 1}.get(before.role) if len(before.shape) > 1 else None
        expected = [min(n, rank) if i == axis else n for i, n in enumerate(before.shape)]
        assert after == replace(before, shape=tuple(expected))
    assert layout.limited(None) == layout == layout.limited(99)
    assert limited.limited(rank) == limited


@settings(max_examples=60, deadline=None)
@given(ADAPTERS, st.integers(1, 6))
def test_a_cut_adapter_is_padded_with_zeros_and_cut_again_without_loss(layout, rank):
    arrays, small = arrays_for(layout), layout.limited(rank)
    low = cut(arrays, small)
    small.check(low)
    whole = padded(low, layout)
    layout.check(whole)
    for spec in layout:
        corner = tuple(slice(0, n) for n in low[spec.name].shape)
        np.testing.assert_array_equal(whole[spec.name][corner], arrays[spec.name][corner])
        beyond = whole[spec.name].copy()
        beyond[corner] = 0
        assert not beyond.any()
    assert digest(cut(whole, small)) == digest(low)


@settings(max_examples=80, deadline=None)
@given(LAYOUTS, st.data())
def test_a_mask_names_the_same_tensors_again_and_two_sets_have_two_masks(layout, data):
    sets = st.frozensets(st.sampled_from(layout.names)) if layout.names else st.just(frozenset())
    one, two = data.draw(sets), data.draw(sets)
    assert layout.named(layout.mask(one)) == one
    assert (layout.mask(one) == layout.mask(two)) == (one == two)
    assert layout.named(layout.mask(layout.names)) == set(layout.names)
    assert layout.mask(()) == "0"


@pytest.mark.parametrize(
    "mask",
    ["4", "ff", "-1", "-0", "+1", "0x1", "00", "01", " 1", "1\n", "1_0", "٣", "A", "x", "", "1" * 10**6],
)
def test_a_mask_of_another_form_or_length_is_refused(mask):
    for place in (layout(), layout().select(())):
        with pytest.raises(LayoutError, match=f"does not name tensors of this layout of {len(place.names)}"):
            place.named(mask)


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

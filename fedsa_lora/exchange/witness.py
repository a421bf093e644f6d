"""The witness: searches a serialised message for values that must not leave the client.

A run of consecutive float32 values of a private tensor that stands in the message, at any byte offset, is a
leak when it is too improbable for chance. The digest, the names and the layout already forbid B in an
upload; this looks at the bytes themselves and trusts none of them.

A false alarm costs a client its round, so the measure is probability. The information of a value v in bits
is -log2 q, where q is the share of private values as large as v, to the last place, as far as the values
near it show: among all values of the client and among the 32 around it. Signs and zeros count for nothing, a
mantissa for no more than the 23 bits before its trailing zeros. If a private value is as large as a given
value of a message with at most that probability, whatever stands before them, then a run of b bits stands at
a given place with at most 2^-b; a message of M bytes and a client with N private values have at most M N
places for it. A run is therefore recognised when

    b >= log2(M N / p),    p = 1e-13 for each message,

and 10,000 messages of any size raise a false alarm with a probability of at most 1e-9, whatever optimizer
made the values:

- SGD, or AdamW after a few rounds: a value has about 22 bits, four in a row are recognised, five for certain.
- The first steps of AdamW, all near the learning rate: 2 to 12 bits, so 7 to 40 values in a row are needed.
- Where nearly all steps are the learning rate to the last bit, little but signs is left, and of values with
  less than 1.5 bits on average nothing is recognised.

A run is found by its parts: of four values where these have enough bits to show which part it is, of 8 or
16 where they have fewer. Those are of values with many digits, as whole numbers follow in an order: 7, 8, 9.
A tensor of less than four values cannot be distinguished from chance and is not searched for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import NamedArrays

FALSE_ALARM = 1e-9 / 10_000  # the most that one message may have
SEED = 4  # values: as a run is searched for by its parts of this length at least, none is shorter
SEED_BITS = 24.0  # with less, a part stands in too many places to show which one it came from
LONGEST = 4 * SEED  # parts are twice and four times as long where shorter ones have less
NEIGHBOURS = 32  # values that are likely to be made by steps of one size
MANTISSA_BITS = 23
DOUBLE = 0x9FB21C651E98DF25
MARKS = (18, 26)  # bits of a key, least and most: a table of up to 64 MB that leaves few places to look up
FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)

Words = NDArray[np.uint32]
Keys = NDArray[np.uint64]
Bits = NDArray[np.float64]
Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class Seeds:
    """Starts of the parts of ``length`` values that are worth a look: ``starts`` (k,), in the order of
    their ``keys`` (k,). ``marks`` are the upper bits of the keys that there are."""

    length: int
    keys: Keys
    starts: NDArray[np.int64]
    marks: Marks


@dataclass(frozen=True)
class PrivateValues:
    """The private tensors of a client end to end, (n,), and the parts of them that are looked for, the short
    ones first. ``information`` (n + 1,) are the bits of all values before each place."""

    words: Words
    information: Bits
    seeds: tuple[Seeds, ...]

    @property
    def size(self) -> int:
        """The number of places at which a run can begin."""
        return sum(seeds.starts.size for seeds in self.seeds)


def private_values(states: Iterable[NamedArrays], public: Iterable[NamedArrays] = ()) -> PrivateValues:
    """Values to search for: the tensors of these states, but for what ``public`` ones hold as well."""
    nothing = np.zeros(0, np.uint32)
    tensors, bits = [nothing], [np.zeros(1)]
    for state in states:
        own = [_words(array) for array in state.values()]
        tensors += own
        bits.append(_information(np.concatenate([nothing, *own])))
    words, information = np.concatenate(tensors), np.cumsum(np.concatenate(bits))
    ends = np.cumsum([tensor.size for tensor in tensors])
    known = [dict(_keys(_words(array))) for state in public for array in state.values()]
    return PrivateValues(words, information, tuple(_seeds(words, information, ends, known)))


@dataclass(frozen=True)
class Sketch:
    """The ``values`` private values of a state, and a key for each ``SEED`` of them in a row, (k,): enough to
    see that a message holds none of them."""

    values: int
    keys: Keys

    @classmethod
    def of(cls, state: NamedArrays) -> Sketch:
        words = np.concatenate([np.zeros(0, np.uint32), *map(_words, state.values())])
        return cls(words.size, _seed_keys(words))


def search(message: bytes, sketches: Sequence[Sketch], states: Callable[[], Sequence[NamedArrays]]) -> int:
    """Counts as ``matches`` does with the private values of these states. Most messages have no ``SEED``
    values in a row of theirs, and so no run: seeing that needs neither the states nor the information of each
    value, which takes longer to compute."""
    return matches(message, private_values(states())) if may_hold(message, sketches) else 0


def may_hold(message: bytes, sketches: Sequence[Sketch]) -> bool:
    """False where no ``SEED`` values in a row of a message stand in a row in these states."""
    if len(message) < 4 * SEED or not sketches:
        return False
    sent = np.concatenate([_seed_keys(_at_offset(message, offset)) for offset in range(4)])
    private = np.concatenate([sketch.keys for sketch in sketches])
    fewer, more = sorted((private, sent), key=len)  # of either side, what may be on the other
    more = more[_in_marks(more, _marks(fewer))]
    fewer = fewer[_in_marks(fewer, _marks(more))]
    return not set(fewer.tolist()).isdisjoint(more.tolist())


def _seeds(
    words: Words, information: Bits, ends: NDArray[np.int64], public: Sequence[Mapping[int, Keys]]
) -> Iterator[Seeds]:
    """From each place the shortest part that has enough bits and ends with its tensor at the latest, but for
    those that are public; ``public`` are keys by length."""
    left = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(words.size)  # values to the tensor's end
    short = np.ones(words.size, bool)  # places of which no shorter part had enough bits
    many_digits = _significant((words & 0x7FFFFFFF).astype(np.int64)) > MANTISSA_BITS // 2
    of_many = np.append(0, np.cumsum(np.diff(information) * many_digits))
    for length, keys in _keys(words):
        bits = information if length == SEED else of_many
        place = np.flatnonzero(short[: keys.size] & (left[: keys.size] >= length))
        place = place[bits[place + length] - bits[place] >= SEED_BITS]
        short[place] = False
        for known in public:
            if place.size:
                place = place[~np.isin(keys[place], known[length])]
        if place.size:
            yield _table(length, keys[place], place)


def _table(length: int, keys: Keys, starts: NDArray[np.int64]) -> Seeds:
    order = np.argsort(keys, kind="stable")
    return Seeds(length, keys[order], starts[order], _marks(keys))


def matches(message: bytes, private: PrivateValues) -> int:
    """Counts the values of the message that stand in runs of private values that chance cannot have put
    there."""
    if not private.size or len(message) < 4 * SEED:
        return 0
    significant = log2(len(message) * private.words.size / FALSE_ALARM)
    found = 0
    for offset in range(4):
        words = _at_offset(message, offset)
        begins, lengths = _runs(words, private)
        bits = private.information[begins + lengths] - private.information[begins]
        found += int(lengths[bits >= significant].sum())
    return found


def _runs(words: Words, private: PrivateValues) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The longest runs of words that follow each other in the private values as well: where each begins
    there, and how many words it has."""
    keys = _keys(words, private.seeds[-1].length)
    wanted = {seeds.length: seeds for seeds in private.seeds}
    found = [_parts(words, keys, wanted[length], private) for length, keys in keys if length in wanted]
    at, begin, length = np.concatenate(found, axis=1)
    order = np.lexsort((at, at - begin))  # parts of one run are as far from their place in the private values
    at, begin, length = at[order], begin[order], length[order]
    apart = np.cumsum(np.diff(at - begin, prepend=0) != 0) * (words.size + 1)
    reach = np.maximum.accumulate(apart + at + length)
    goes_on = (apart + at)[1:] < reach[:-1]
    ends = np.flatnonzero(np.append(~goes_on, np.ones(min(1, at.size), bool)))
    first = np.append(0, ends[:-1] + 1)[: ends.size]
    return begin[first], reach[ends] - (apart + at)[first]


def _parts(words: Words, keys: Keys, seeds: Seeds, private: PrivateValues) -> NDArray[np.int64]:
    """The parts that stand in words as in the private values: where in each, and their length; (3, k)."""
    at = np.flatnonzero(_in_marks(keys, seeds.marks))
    place = np.searchsorted(seeds.keys, keys[at])
    begin = seeds.starts[np.minimum(place, seeds.starts.size - 1)]
    for step in range(seeds.length):
        same = words[at + step] == private.words[begin + step]
        at, begin = at[same], begin[same]
    return np.stack([at, begin, np.full(at.size, seeds.length)])


def _words(array: NDArray[np.float32]) -> Words:
    return np.ascontiguousarray(array, dtype="<f4").view("<u4").ravel()


def _keys(words: Words, longest: int = LONGEST) -> Iterator[tuple[int, Keys]]:
    """By length of a part, a number for each so many words in a row, (n - length + 1,); others have the same
    one rarely."""
    count = max(0, words.size - SEED + 1)
    keys = np.zeros(count, np.uint64)
    for step, factor in enumerate(FACTORS):
        keys += words[step : step + count] * np.uint64(factor)
    length = SEED
    yield length, keys
    while length < longest:
        keys = keys[:-length] + keys[length:] * np.uint64(DOUBLE)
        length *= 2
        yield length, keys


def _seed_keys(words: Words) -> Keys:
    return next(_keys(words))[1]


def _at_offset(message: bytes, offset: int) -> Words:
    return np.frombuffer(message, "<u4", count=(len(message) - offset) // 4, offset=offset)


def _marks(keys: Keys) -> Marks:
    """A table of the upper bits of the keys that there are."""
    least, most = MARKS
    marks = np.zeros(1 << min(most, max(least, keys.size.bit_length() + 4)), bool)
    marks[_upper_bits(keys, marks)] = True
    return marks


def _in_marks(keys: Keys, marks: Marks) -> NDArray[np.bool_]:
    """True for keys whose upper bits are marked, (n,)."""
    return marks[_upper_bits(keys, marks)]


def _upper_bits(keys: Keys, marks: Marks) -> NDArray[np.int64]:
    """As NumPy indexes by them without a copy."""
    return (keys >> np.uint64(65 - marks.size.bit_length())).view(np.int64)


def _information(words: Words) -> Bits:
    """The bits of each value, (n,)."""
    size = (words & 0x7FFFFFFF).astype(np.int64)
    bits: Bits = np.minimum(_rarity(size[None])[0], _significant(size))
    if size.size > NEIGHBOURS:
        rows = -(-size.size // NEIGHBOURS)
        near = np.resize(size, (rows, NEIGHBOURS))  # the last row continues with the first values
        bits = np.minimum(bits, _rarity(near).ravel()[: size.size])
    return bits


def _significant(size: NDArray[np.int64]) -> Bits:
    """The bits of a mantissa before its trailing zeros: few in a whole number, or what bf16 holds."""
    lowest = np.frexp((size & -size).astype(np.float64))[1] - 1
    return np.where(size == 0, 0, MANTISSA_BITS - np.minimum(lowest, MANTISSA_BITS)).astype(np.float64)


def _rarity(size: NDArray[np.int64]) -> Bits:
    """-log2 of the share of a row's values that are as large as each, to the last place; (rows, n).

    ``size`` are magnitudes in units of the last place. From each value to the k-th after it lie k others:
    their density is k by that distance, and the largest of all k, up and down, counts for both ends.
    """
    count = size.shape[1]
    order = np.argsort(size, axis=1)
    size = np.take_along_axis(size, order, axis=1)
    density = np.full(size.shape, 2.0**-MANTISSA_BITS)
    others = 1
    while others < count:
        between = others / (size[:, others:] - size[:, :-others] + 1)
        np.maximum(density[:, others:], between, out=density[:, others:])
        np.maximum(density[:, :-others], between, out=density[:, :-others])
        others *= 2
    bits = np.empty_like(density)
    np.put_along_axis(bits, order, np.maximum(0, log2(max(count, 1)) - np.log2(density)), axis=1)
    return bits

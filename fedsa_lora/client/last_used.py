"""Holds in memory what a process used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LastUsed(Generic[Value]):
    """Values that were used last: one, and more up to ``most`` bytes, as ``size`` counts those of each."""

    def __init__(self, size: Callable[[Value], int], most: int) -> None:
        self._size, self._most, self._bytes = size, most, 0
        self._held: OrderedDict[Hashable, Value] = OrderedDict()

    def __call__(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """The value of a key, loaded unless it is held. Raises what ``load`` raises."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        value = self._held[key] = load()
        self._bytes += self._size(value)
        while len(self._held) > 1 and self._bytes > self._most:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= self._size(oldest)
        return value

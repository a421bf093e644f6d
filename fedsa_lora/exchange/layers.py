"""Splits that go by the depth of a layer in the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsa_lora.errors import ConfigError, SplitError
from fedsa_lora.exchange.arrays import Layout, Role
from fedsa_lora.exchange.split import AdapterSplit, Share, SplitPolicy

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

_BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True, kw_only=True)
class LayerWise(SplitPolicy):
    """Share A of some layers, keep A of the others, and every B.

    Exactly one of: ``first`` n, ``last`` n, ``every`` n-th (counted from the first with adapters, which
    is included), or ``layers``, a list of numbers of layers, counted from 0. A layer here is a block of the
    model, with all its adapters. Of a layout that holds only what is shared, all is shared.
    """

    first: int | None = None
    last: int | None = None
    every: int | None = None
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self._given()
        if len(chosen) != 1:
            raise ConfigError(
                f"expected exactly one of first, last, every and layers, got {chosen or 'none'}"
            )
        if any(value < 1 if isinstance(value, int) else not value for value in chosen.values()):
            raise ConfigError(f"{chosen}: expected a number of layers, at least 1")

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        depth = run.model.depth  # None: told by the plan, which makes the model without its weights
        try:
            if depth is not None:
                self._chosen(list(range(depth)))
        except SplitError as error:
            yield str(error)

    def of(self, role: Role) -> Share:
        return {"A": "shared", "B": "local", "head": self.head, "base": "frozen"}[role]

    def __call__(self, layout: Layout) -> AdapterSplit:
        whole = super().__call__(layout)
        blocks = blocks_of(layout)
        chosen = self._chosen(sorted(set(blocks.values())))
        kept = frozenset(
            spec.name for spec in layout if spec.role == "A" and blocks.get(spec.layer) not in chosen
        )
        return whole.narrowed(whole.shared - kept, "local")

    def words(self) -> dict[str, str]:
        ((key, value),) = self._given().items()
        return super().words() | {"A": f"shared in layers: {key} {value}"}

    def _given(self) -> dict[str, object]:
        choices = {key: getattr(self, key) for key in ("first", "last", "every", "layers")}
        return {key: value for key, value in choices.items() if value is not None}

    def _chosen(self, numbers: list[int]) -> list[int]:
        if self.layers is not None:
            if unknown := sorted(set(self.layers) - set(numbers)):
                raise SplitError(
                    f"split.layers={list(self.layers)}: no layers {unknown}; there are {numbers}"
                )
            return list(self.layers)
        wanted = self.first or self.last or self.every or 0
        if wanted > len(numbers):
            raise SplitError(f"split asks for {wanted} layers with adapters, the model has {len(numbers)}")
        if self.every is not None:
            return [number for number in numbers if (number - numbers[0]) % self.every == 0]
        return numbers[:wanted] if self.first is not None else numbers[-wanted:]


def blocks_of(layout: Layout) -> dict[str, int]:
    """The number of the block in which each layer with an adapter lies: the first number in its path.

    Layers outside of the blocks, such as embeddings, are not in it.
    """
    found = {spec.layer: _BLOCK.search(spec.layer) for spec in layout if spec.role in ("A", "B")}
    return {layer: int(match[1]) for layer, match in found.items() if match}

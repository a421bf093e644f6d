"""Which tensors a client shares, which it keeps, and which nobody trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsa_lora.errors import SplitError
from fedsa_lora.exchange.arrays import Layout, Role

Disposition = Literal["shared", "local", "frozen"]


@dataclass(frozen=True)
class AdapterSplit:
    """Disjoint sets of tensor names. Raises SplitError when a name is in two of them."""

    shared: frozenset[str]
    local: frozenset[str]
    frozen: frozenset[str]

    def __post_init__(self) -> None:
        pairs = {
            "shared and local": self.shared & self.local,
            "shared and frozen": self.shared & self.frozen,
            "local and frozen": self.local & self.frozen,
        }
        if faults := [f"both {what}: {sorted(names)}" for what, names in pairs.items() if names]:
            raise SplitError("; ".join(faults))

    @property
    def trained(self) -> frozenset[str]:
        return self.shared | self.local


@dataclass(frozen=True)
class RoleSplit:
    """A split by role: what becomes of every A, B, head and backbone tensor.

    FedSA-LoRA (arXiv:2410.01463) shares A and keeps B; Fed-ALoRA shares B and keeps A;
    FedIT (arXiv:2305.05644) shares both; FFA-LoRA (arXiv:2403.12313) shares B and freezes A;
    ``base="shared"`` is FedAvg of the whole model.
    """

    A: Disposition
    B: Disposition
    head: Disposition
    base: Disposition = "frozen"

    def __call__(self, layout: Layout) -> AdapterSplit:
        """Every tensor of the layout, in exactly one set."""
        return AdapterSplit(
            shared=self._names(layout, "shared"),
            local=self._names(layout, "local"),
            frozen=self._names(layout, "frozen"),
        )

    def of(self, role: Role) -> Disposition:
        disposition: Disposition = getattr(self, role)
        return disposition

    def alone(self) -> RoleSplit:
        """The split of a client that trains the same model without a federation: nothing is
        shared, both factors are trained, and what is frozen by policy stays so."""
        return RoleSplit(
            A="local",
            B="local",
            head="frozen" if self.head == "frozen" else "local",
            base="frozen" if self.base == "frozen" else "local",
        )

    def _names(self, layout: Layout, disposition: Disposition) -> frozenset[str]:
        return frozenset(spec.name for spec in layout if self.of(spec.role) == disposition)

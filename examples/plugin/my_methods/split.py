"""A split: the tensors that clients share, by round."""

from dataclasses import dataclass

from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.split import RoleSplit


@dataclass(frozen=True, kw_only=True)
class HeadLater(RoleSplit):
    """Shares A in every round, as FedSA-LoRA, and the head after round ``after``; needs head=shared."""

    by_role = False  # the head is local in the first rounds
    after: int = 1

    def in_round(self, layout: Layout, round_: int) -> frozenset[str]:
        shared = super().in_round(layout, round_)
        head = {spec.name for spec in layout if spec.role == "head"}
        return shared - head if round_ <= self.after else shared

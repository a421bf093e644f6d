"""Splits of the adapter: tensors that a client shares in a round, keeps, or does not train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

from fedsa_lora.errors import ConfigError, SplitError
from fedsa_lora.exchange.arrays import ROLES, Layout, Role
from fedsa_lora.group import Group
from fedsa_lora.suggest import listing

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

Disposition = Literal["shared", "local", "frozen"]
Share = Disposition | float
Factor = Literal["A", "B"]
Score = Literal["gradient", "fisher", "taylor"]  # of importance


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

    def narrowed(self, shared: frozenset[str], idle: Literal["local", "frozen"]) -> AdapterSplit:
        """The split of a round in which only some of what may be shared is."""
        rest = self.shared - shared
        local, frozen = (rest, frozenset[str]()) if idle == "local" else (frozenset[str](), rest)
        return AdapterSplit(shared & self.shared, self.local | local, self.frozen | frozen)


@dataclass(frozen=True)
class Turn:
    """A client's part in a round: the tensors to share, and those of them that it starts from
    its own value where it had them to itself, because they were shared by nobody before."""

    shared: frozenset[str]
    joining: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class SplitPolicy(Group, ABC):
    """Decides which tensors may be shared, and in which round.

    ``allow`` are the only factors that a client ever sends, whatever a server asks for: B is not among
    them unless a config adds it. ``head`` is the disposition of the classifier, or the degree to
    which it is local (0: shared, 1: local).
    """

    allow: tuple[Factor, ...] = ("A",)
    head: Share = "local"

    idle: ClassVar[Literal["local", "frozen"]] = "local"  # what a tensor is in a round that does not share it
    adaptive: ClassVar[bool] = False  # whether the server decides from what clients report
    by_importance: ClassVar[bool] = False  # whether clients score tensors in their own training steps
    by_role: ClassVar[bool] = False  # whether tensors of one role have one disposition, in every round

    @abstractmethod
    def of(self, role: Role) -> Share:
        """The treatment of tensors of this role; "shared" where some of them are in some round."""

    def __post_init__(self) -> None:
        for role in ROLES:
            value = self.of(role)
            if not isinstance(value, str) and not 0 <= value <= 1:
                raise ConfigError(f"{role}={value:g}: expected a degree from 0 (shared) to 1 (local)")
            if role in ("A", "B") and _travels(value) and role not in self.allow:
                raise ConfigError(
                    f"{role} is to be shared, which split.allow={list(self.allow)} forbids: add {role} to "
                    f"split.allow if {role} may leave the clients"
                )

    @property
    def by_client(self) -> bool:
        """True where clients share different tensors in a round."""
        return False

    @property
    def turns(self) -> tuple[Factor, ...]:
        """The factors that are trained one after the other, over and over; none: all are, in each round."""
        return ()

    @property
    def shares_both(self) -> bool:
        """True where every A and every B is shared as it is, in each round."""
        return self.by_role and self.of("A") == self.of("B") == "shared"

    def scoring(self, pool: Layout) -> tuple[Score, tuple[str, ...]] | None:
        """The score that the split decides from, and the tensors of the pool that clients report it of; None
        where it needs none."""
        return None

    def clashes(self, run: RunConfig) -> Iterator[str]:
        whole = self.of("base") != "frozen"
        if whole and run.lora is not None:
            yield "split.base is trained, so there must be no adapters: set lora=none"
        if not whole and run.lora is None:
            yield "lora=none leaves only the head to train: choose split=full, or lora=default"
        if all(self.of(role) == "frozen" for role in ROLES):
            yield "split and head freeze everything: there is nothing to train"

    def __call__(self, layout: Layout) -> AdapterSplit:
        """Every tensor in one set; ``shared`` is all that may be shared in some round.

        Raises SplitError when the model lacks what the policy names.
        """
        sets: dict[Disposition, frozenset[str]] = dict.fromkeys(("shared", "local", "frozen"), frozenset())
        for role, names in layout.of_role.items():
            sets[_disposition(self.of(role))] |= names
        return AdapterSplit(**sets)

    def in_round(self, layout: Layout, round_: int) -> frozenset[str]:
        """Tensors that are shared in a round (the first is 1) unless the server has reason to choose
        otherwise."""
        return self(layout).shared

    def allowed(
        self, layout: Layout, forbid: Iterable[str] = (), frozen: Iterable[str] = ()
    ) -> frozenset[str]:
        """The tensors that a client with this config lets out. ``forbid`` are roles and patterns of names
        (``*.layer.5.*``) that the client's own machine keeps in besides.

        Raises ConfigError for one that is neither a role nor matches a tensor, of the layout or of the
        ``frozen`` ones beside it: it would keep in nothing of what its machine meant.
        """
        rest: tuple[Role, Role] = ("head", "base")
        roles = {*self.allow, *(role for role in rest if _travels(self.of(role)))}
        patterns = tuple(forbid)
        _demand_matches(patterns, layout.names, frozen)
        return frozenset(
            spec.name
            for spec in layout
            if spec.role in roles and not any(spec.role == p or fnmatchcase(spec.name, p) for p in patterns)
        )

    def degrees(self, layout: Layout) -> dict[str, float]:
        """The tensors that are local by degree: above 0 and below 1."""
        values = {role: self.of(role) for role in ROLES}
        soft = {role: v for role, v in values.items() if not isinstance(v, str) and 0 < v < 1}
        return {spec.name: soft[spec.role] for spec in layout if spec.role in soft}

    def alone(self) -> RoleSplit:
        """The split of a client that trains the same model without a federation: nothing is
        shared, both factors are trained, and what is frozen by policy stays so."""
        frozen: dict[Role, Disposition] = {
            role: "frozen" if self.of(role) == "frozen" else "local" for role in ("head", "base")
        }
        return RoleSplit(A="local", B="local", head=frozen["head"], base=frozen["base"])

    def words(self) -> dict[str, str]:
        """The treatment of each role, to be read."""
        return {role: _word(self.of(role)) for role in ROLES}


@dataclass(frozen=True, kw_only=True)
class RoleSplit(SplitPolicy):
    """A split by role: how every A, B, head and backbone tensor is treated.

    FedSA-LoRA (arXiv:2410.01463) shares A and keeps B; Fed-ALoRA shares B and keeps A;
    FedIT (arXiv:2305.05644) shares both; FFA-LoRA (arXiv:2403.12313) shares B and freezes A;
    ``base="shared"`` is FedAvg of the whole model. A number is the degree to which a role is local:
    0 is "shared", 1 is "local", and between them each client mixes its own with the shared value.
    """

    by_role = True

    A: Share
    B: Share
    base: Disposition = "frozen"

    def of(self, role: Role) -> Share:
        share: Share = getattr(self, role)
        return share


@dataclass(frozen=True, kw_only=True)
class Alternate(SplitPolicy):
    """Both factors are shared; in a round one of them is trained and sent, the other is frozen.

    ``order`` names the factor of each round, in a cycle. RoLoRA (arXiv:2502.01755) is B, A: B first,
    because the gradient of A is zero while B is. FedSVD (arXiv:2505.12805) is B alone, with an A that
    the server chooses. The mean of B_k A is (mean of B_k) A: aggregation is exact.
    """

    idle = "frozen"

    order: tuple[Factor, ...] = ("B", "A")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.order:
            raise ConfigError("order is empty: expected the factors in order, such as [B, A]")

    @property
    def turns(self) -> tuple[Factor, ...]:
        return self.order

    def of(self, role: Role) -> Share:
        return self.head if role == "head" else "frozen" if role == "base" else "shared"

    def words(self) -> dict[str, str]:
        turns = f"shared, trained in turn: {', '.join(self.order)}"
        return super().words() | dict.fromkeys(("A", "B"), turns)

    def in_round(self, layout: Layout, round_: int) -> frozenset[str]:
        trained = self.order[(round_ - 1) % len(self.order)]
        shared = self(layout).shared
        return shared - {spec.name for spec in layout if spec.role in ("A", "B") and spec.role != trained}


def _demand_matches(patterns: Iterable[str], names: Sequence[str], frozen: Iterable[str]) -> None:
    known = (*names, *frozen)
    idle = [p for p in patterns if p not in ROLES and not any(fnmatchcase(name, p) for name in known)]
    if idle:
        raise ConfigError(
            f"forbid: {', '.join(map(repr, idle))} matches no tensor of this model; expected roles "
            f"({listing(ROLES)}) and patterns of names such as {listing(names, 6)}",
            sent="a pattern of its node's forbid matches no tensor of the model",
        )


def _word(share: Share) -> str:
    mixed = not isinstance(share, str) and 0 < share < 1
    return f"shared, {share:.0%} local" if mixed else _disposition(share)


def _travels(share: Share) -> bool:
    return share == "shared" or (not isinstance(share, str) and share < 1)


def _disposition(share: Share) -> Disposition:
    if isinstance(share, str):
        return share
    return "shared" if share < 1 else "local"

"""A and B as the clients of a run trained them, read from their folders and compared."""

from __future__ import annotations

from dataclasses import dataclass

from fedsa_lora.analysis.similarity import basis, cosine, factor, over_pairs, overlap
from fedsa_lora.client import build
from fedsa_lora.client.personal import TRAINED
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, TensorSpec, cut, padded
from fedsa_lora.runs.reading import Row
from fedsa_lora.server.build import skeleton
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import ClientState

NOT_A_NUMBER = float("nan")


@dataclass(frozen=True)
class Factors:
    """The trained A and B of one run: ``rounds`` has the tensors of each client by round, as they were before
    aggregation; ``start`` is what all of its clients began with; ``relative`` are the tensors of which only
    the difference from a start that depends on the pretrained weights is known."""

    layout: Layout
    start: NamedArrays
    relative: frozenset[str]
    rounds: dict[int, list[NamedArrays]]


def trained_factors(config: RunConfig) -> Factors:
    """Of every generation that the clients' folders hold. Raises RunError where they do not hold what was
    trained, because it is shared and was not kept."""
    model = skeleton(config)
    trained = config.split(model.layout).trained
    layout = model.layout.select(s.name for s in model.layout if s.role in ("A", "B") and s.name in trained)
    rounds: dict[int, list[NamedArrays]] = {}
    for folder in sorted(config.store_dir.iterdir()) if config.store_dir.is_dir() else []:
        store = build.store(config, folder.name)
        for round_ in store.rounds():
            state = store.load(round_)
            assert state is not None
            rounds.setdefault(round_, []).append(_trained(state, layout, folder.name))
    return Factors(
        layout, cut(model.initial(config.seed), layout), model.relative, dict(sorted(rounds.items()))
    )


def compare(ours: Factors, theirs: Factors | None = None) -> list[Row]:
    """By round and tensor, over all pairs of clients of one run, or of a client of each of two runs.

    Raises RunError for runs with adapters of other shapes.
    """
    if theirs is not None and theirs.layout != ours.layout:
        raise RunError(
            "the adapters of the two runs differ in names or shapes: their clients cannot be compared"
        )
    return [
        {"round": round_, "layer": spec.layer, "factor": spec.role, "name": spec.name}
        | _compared(spec, ours, theirs, round_)
        for round_ in ours.rounds
        if theirs is None or round_ in theirs.rounds
        for spec in ours.layout
    ]


def _trained(state: ClientState, layout: Layout, client: str) -> NamedArrays:
    kept = {name.removeprefix(TRAINED): a for name, a in state.memory.items() if name.startswith(TRAINED)}
    kept |= state.tensors
    if lacking := sorted(set(layout.names) - kept.keys()):
        raise RunError(
            f"client {client} has no record of its locally trained {lacking[0]} of round {state.round}, "
            f"because it "
            "is shared: run again with run.keep_trained=true"
        )
    return padded(kept, layout)


def _compared(spec: TensorSpec, ours: Factors, theirs: Factors | None, round_: int) -> Row:
    """NaN for what has no meaning: a start that is not known, and the spaces of a vector."""
    sides = [side for side in (ours, theirs) if side is not None]
    ends = [[client[spec.name] for client in side.rounds[round_]] for side in sides]
    moves = [[end - side.start[spec.name] for end in found] for side, found in zip(sides, ends, strict=True)]
    whole = all(spec.name not in side.relative for side in sides)
    row = {"cosine": over_pairs(cosine, *ends) if whole else NOT_A_NUMBER}
    row |= {"cosine_learned": over_pairs(cosine, *moves), "overlap": NOT_A_NUMBER, "chance": NOT_A_NUMBER}
    if whole and len(spec.shape) > 1:
        spaces = [[basis(factor(end, spec.role)) for end in found] for found in ends]
        size, rank = factor(ours.start[spec.name], spec.role).shape
        row |= {"overlap": over_pairs(overlap, *spaces), "chance": min(1.0, rank / size)}
    return row

"""A comparison as a page of Markdown and as rows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from fedsa_lora.compare.grid import Grid
from fedsa_lora.compare.scores import Score
from fedsa_lora.compare.significance import LEVEL
from fedsa_lora.runs.wording import percent

HEADS = (
    "method", "lr", "mean", "worst client", "harmed", "gain", "behind the best", "kB up / down",
    "MB up / down", "MB to target", "seconds", "error",
)  # fmt: skip
NOTE = f"""\
Accuracy is that of each client's own model on its own test part.
- **mean** over clients and seeds, ± the standard deviation over seeds; **worst client** of all seeds.
- **harmed**: share of clients below {{reference}} of the same seed; **gain**: mean difference, in points.
- **kB** of the training messages of a client and round; **MB** of all of a run, and **to target**: both ways,
  until the mean over clients first reached that of {{reference}}, by seed. **seconds** of training and
  transfer in the fastest run, others beside it: good for orders of magnitude alone. **error**: relative
  aggregation error.
- **behind the best**: mean difference in points over (client, seed) pairs of the same partition, with its
  95 % t interval, and p of Wilcoxon's two-sided signed-rank test, by Holm over the methods of a regime.
  Names in bold: the best, and what cannot be told from it (p of at least {LEVEL:g}).

Clients of one federation share a model and are not independent, so intervals are too narrow and p too
small; and the best was picked by these same figures."""


def page(
    grid: Grid, by_regime: dict[str, list[Score]], notes: Sequence[str], failures: Sequence[str], missing: int
) -> str:
    """The whole comparison; what failed and what is missing is said first."""
    parts = [f"# {grid.title}", *([grid.description.strip()] if grid.description else [])]
    if missing:
        parts.append(f"**Not complete: {missing} runs are missing. Methods without all runs are not shown.**")
    if failures:
        parts.append("**Runs that failed:**\n" + "\n".join(f"- {failure}" for failure in failures))
    parts += [NOTE.format(reference=grid.reference), *notes]
    for regime, found in by_regime.items():
        words = " ".join(filter(None, [grid.regimes[regime], grid.fixed.get(regime)]))
        if found:
            parts += [f"## {regime}", f"`{words}`", *_references(found, grid.reference), table(found)]
    return "\n\n".join(parts) + "\n"


def verdict(found: Sequence[Score]) -> str:
    """The best of a regime, and what cannot be told from it, in a line."""
    best, *others = found
    level = [score.method for score in others if score.level]
    told = f"; not to be told from it: {', '.join(level)}" if level else ""
    return f"{best.regime}: {best.method} {best.mean:.3f}{told}"


def table(found: Sequence[Score]) -> str:
    """One regime as a Markdown table, the best first."""
    heads, rows = [*HEADS], [_cells(score) for score in found]
    if any(score.attack_success is not None for score in found):
        heads.append("attack")
        rows = [[*row, percent(score.attack_success)] for row, score in zip(rows, found, strict=True)]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(found: Sequence[Score]) -> list[dict[str, Any]]:
    """One flat row for each method: accuracies from 0 to 1, bytes, seconds."""
    return [
        {
            "regime": s.regime, "method": s.method, "lr": s.lr, "seeds": len(s.means), "mean": s.mean,
            "std": s.std, "worst": s.worst, "harmed": s.harmed, "gain": s.gain,
            "behind": s.behind.mean if s.behind else 0.0, "behind_low": s.behind.low if s.behind else None,
            "behind_high": s.behind.high if s.behind else None, "p": s.behind.p if s.behind else None,
            "level_with_best": s.level, "bytes_up": s.bytes_up, "bytes_down": s.bytes_down,
            "bytes": s.sent, "bytes_to_target": _mean_if_all(s.to_target), "seconds": s.seconds,
            "aggregation_error": s.aggregation_error, "attack_success": s.attack_success,
            "majority": s.majority,
        }
        for s in found
    ]  # fmt: skip


def _cells(score: Score) -> list[str]:
    mean = f"{score.mean:.3f}" + ("" if score.std is None else f" ± {score.std:.3f}")
    behind = "" if score.behind is None else (
        f"{100 * score.behind.mean:.1f} [{100 * score.behind.low:.1f}, {100 * score.behind.high:.1f}] "
        f"p {score.behind.p:.2g}"
    )  # fmt: skip
    error, up = score.aggregation_error, score.bytes_up / (score.bytes_up + score.bytes_down)
    return [
        f"**{score.method}**" if score.level else score.method,
        f"{score.lr:g}",
        mean,
        f"{score.worst:.3f}",
        "" if score.harmed is None else f"{score.harmed:.0%}",
        "" if score.gain is None else f"{100 * score.gain:+.1f}",
        behind,
        f"{_thousands(score.bytes_up)} / {_thousands(score.bytes_down)}",
        f"{_megabytes(score.sent * up)} / {_megabytes(score.sent * (1 - up))}",
        ", ".join("-" if b is None else _megabytes(b) for b in score.to_target),
        f"{score.seconds:.0f}",
        "" if error is None else f"{error:.1e}",
    ]


def _references(found: Sequence[Score], reference: str) -> list[str]:
    """What a method is to be measured by, as far as it is known."""
    target = [f"Target: {s.mean:.3f}, the mean of {reference}." for s in found if s.method == reference]
    floor = next((s.majority for s in found if s.majority is not None), None)
    known = [] if floor is None else [f"Predicting each client's most frequent class: {floor:.3f}."]
    return [" ".join([*target, *known])] if target or known else []


def _thousands(size: float) -> str:
    return f"{size / 1e3:.2f}" if size < 1e4 else f"{size / 1e3:.1f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f}" if size < 1e6 else f"{size / 1e6:.1f}"


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    """None as soon as one seed never reached the target."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None

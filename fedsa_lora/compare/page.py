"""A comparison as a page of Markdown and as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedsa_lora.compare.grid import Grid
from fedsa_lora.compare.scores import Score
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.wording import difference, percent
from fedsa_lora.runs.measures import LEVEL, mean_known

HEADS = (
    "method", "lr", "mean", "worst client", "harmed", "gain", "gap to the best", "kB up / down",
    "MB up / down", "MB to target", "seconds", "error",
)  # fmt: skip
NOTE = f"""\
{{measure}} is that of each client's own model on its own test part.{{turned}}
- **mean** over clients and seeds, ± the standard deviation over seeds; **worst client** of all seeds.
- **harmed**: share of clients {{below}} {{reference}} of the same seed; **gain**: mean difference, {{unit}}.
- **kB** of the training messages per client and round; **MB** of all messages of a run, and **to target**: up
  and down, until the mean over clients first reached that of {{reference}}, by seed. **seconds** of training
  and transfer in the fastest run, with other runs on the same machine: orders of magnitude only.
  **error**: relative aggregation error.
- **gap to the best**: mean difference {{unit}} over (client, seed) pairs of the same partition, with its
  95 % t interval, and p of Wilcoxon's two-sided signed-rank test, Holm-adjusted over the methods of a regime.
  In bold: the best, and methods not significantly different from it (p of at least {LEVEL:g}).

Clients of one federation share a model and are not independent, so intervals are too narrow and p too
small; and the best was selected by the same figures."""
OVERVIEW = """\
Means as in the tables of the regimes below; in bold the best of a regime, and methods not significantly
different from it. **gap**: the best method of the regime minus this one, {unit}, mean and maximum over the
regimes; **harmed**: the mean over regimes."""


def page(
    grid: Grid, by_regime: dict[str, list[Score]], notes: Sequence[str], failures: Sequence[str], missing: int
) -> str:
    """The whole comparison; failed and missing runs come first."""
    parts = [f"# {grid.title}", *([grid.description.strip()] if grid.description else [])]
    if missing:
        parts.append(f"**Not complete: {missing} runs are missing. Methods without all runs are not shown.**")
    if failures:
        parts.append("**Runs that failed:**\n" + "\n".join(f"- {failure}" for failure in failures))
    parts += [_note(grid, by_regime), *notes, *overview(grid, by_regime)]
    for regime, found in by_regime.items():
        parts += _section(grid, regime, found) if found else []
    return "\n\n".join(parts) + "\n"


def overview(grid: Grid, by_regime: Mapping[str, Sequence[Score]]) -> list[str]:
    """Every method that is complete in all regimes, side by side, in the order of their mean gap to the
    best; empty for a single regime, or for regimes in different measures."""
    shown = {regime: {score.method: score for score in found} for regime, found in by_regime.items() if found}
    run_as = {regime: grid.shown_as(regime) for regime in shown}
    across = {
        method: [found[name] for regime, found in shown.items() if (name := run_as[regime][method]) in found]
        for method in grid.methods
    }
    complete = [row for row in across.items() if len(row[1]) == len(shown)]
    measures = _measures(by_regime)
    if len(shown) < 2 or not complete or len(measures) > 1:
        return []
    primary = measures[0]
    lines = [
        _overview_cells(method, found, primary)
        for method, found in sorted(complete, key=lambda row: fmean(map(_behind, row[1])))
    ]
    floors = [by_regime[regime][0].majority for regime in shown]
    floor = ["most frequent class", *("" if m is None else f"{m:.3f}" for m in floors), "", "", ""]
    heads = ["method", *shown, "mean gap", "maximum gap", "harmed"]
    return ["## All regimes", OVERVIEW.format(unit=_unit(measures)), _markdown([heads, *lines, floor])]


def verdict(found: Sequence[Score]) -> str:
    """The best of a regime, and methods not significantly different from it, in a line."""
    best, *others = found
    level = [score.method for score in others if score.level]
    told = f"; not significantly different: {', '.join(level)}" if level else ""
    return f"{best.regime}: {best.method} {best.mean:.3f}{told}"


def table(found: Sequence[Score]) -> str:
    """One regime as a Markdown table, the best first."""
    heads, rows = [*HEADS], [_cells(score) for score in found]
    if any(score.attack_success is not None for score in found):
        heads.append("attack")
        rows = [[*row, percent(score.attack_success)] for row, score in zip(rows, found, strict=True)]
    return _markdown([heads, *rows])


def rows(found: Sequence[Score]) -> list[dict[str, Any]]:
    """One flat row for each method: shares from 0 to 1, other measures as they are, bytes, seconds."""
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


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of cells, the first line its heads."""
    heads, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])


def _note(grid: Grid, by_regime: Mapping[str, Sequence[Score]]) -> str:
    """The legend of the tables, in the words of their measures."""
    measures = _measures(by_regime)
    named = " or ".join(measure.words for measure in measures) or "the measure"
    below, turned = "below", ""
    if not all(measure.higher_is_better for measure in measures):
        below, turned = "worse than", " Lower is better; differences are turned so that more is better."
    return NOTE.format(
        measure=named[0].upper() + named[1:],
        turned=turned,
        reference=grid.reference,
        below=below,
        unit=_unit(measures),
    )


def _measures(by_regime: Mapping[str, Sequence[Score]]) -> list[Measure]:
    """Measures of the regimes of which something is shown, each once."""
    return list(dict.fromkeys(found[0].measure for found in by_regime.values() if found))


def _unit(measures: Sequence[Measure]) -> str:
    """The unit of differences."""
    formats = {measure.format for measure in measures}
    if "number" not in formats:
        return "in points"
    return "in the unit of the measure" if len(formats) == 1 else "in points or the unit of the measure"


def _overview_cells(method: str, found: Sequence[Score], measure: Measure) -> list[str]:
    means = [f"**{_mean(score)}**" if score.level else _mean(score) for score in found]
    behind, harmed = [_behind(score) for score in found], mean_known([score.harmed for score in found])
    told = "" if harmed is None else f"{harmed:.0%}"
    return [method, *means, difference(fmean(behind), measure), difference(max(behind), measure), told]


def _behind(score: Score) -> float:
    return 0.0 if score.behind is None else score.behind.mean


def _mean(score: Score) -> str:
    return f"{score.mean:.3f}" + ("" if score.std is None else f" ± {score.std:.3f}")


def _section(grid: Grid, regime: str, found: Sequence[Score]) -> list[str]:
    words = " ".join(filter(None, [grid.regimes[regime], grid.fixed.get(regime)]))
    told = {score.method for score in found}
    same = [
        f"{method} is the same here as {name}, and was run once."
        for method, name in grid.shown_as(regime).items()
        if method != name and name in told
    ]
    return [f"## {regime}", f"`{words}`", *_references(found, grid.reference), table(found), *same]


def _cells(score: Score) -> list[str]:
    behind = ""
    if score.behind is not None:
        ends = (score.behind.mean, score.behind.low, score.behind.high)
        mean, low, high = (difference(end, score.measure) for end in ends)
        behind = f"{mean} [{low}, {high}] p {score.behind.p:.2g}"
    error, up = score.aggregation_error, score.bytes_up / (score.bytes_up + score.bytes_down)
    return [
        f"**{score.method}**" if score.level else score.method,
        f"{score.lr:g}",
        _mean(score),
        f"{score.worst:.3f}",
        "" if score.harmed is None else f"{score.harmed:.0%}",
        "" if score.gain is None else difference(score.gain, score.measure, "+"),
        behind,
        f"{_thousands(score.bytes_up)} / {_thousands(score.bytes_down)}",
        f"{_megabytes(score.sent * up)} / {_megabytes(score.sent * (1 - up))}",
        ", ".join("-" if b is None else _megabytes(b) for b in score.to_target),
        f"{score.seconds:.0f}",
        "" if error is None else f"{error:.1e}",
    ]


def _references(found: Sequence[Score], reference: str) -> list[str]:
    """References of a regime, as far as they are known."""
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

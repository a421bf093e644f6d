"""Words on what a run has forgotten, for the report and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

NEEDED = 40  # facts without which the test of forget quality cannot tell models apart


def unlearning_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines on what a run has forgotten, each with a title: of ``unlearning.json``."""
    lines = []
    for client, numbers in found["targets"].items():
        forget, retain = numbers["forget"], numbers["retain"]
        lines.append((f"client {client}, to forget", _words(forget)))
        lines.append((f"client {client}, kept", _words(retain)))
        lines.append((f"client {client}, model utility (3 of 9 parts)", f"{numbers['model_utility']:.3f}"))
    for client, distances in found.get("against_retrained", {}).items():
        quality = f"p {distances['forget_quality_p']:.3g}"
        if found["facts"]["forget"] < NEEDED:
            quality += f" (not meaningful below {NEEDED} facts)"
        lines.append(
            (f"client {client} against retrained", f"{quality}, NLL {distances['forget_nll_distance']:+.2f}")
        )
    others = [numbers["forget_nll"] for numbers in found["others"].values()]
    if others:
        lines.append(("the other clients, to forget", f"NLL {fmean(others):.3f}"))
    for name, value in found["shared"].items():
        lines.append((f"shared values, {name.replace('_', ' ')}", f"NLL {value:.3f}"))
    for start, by_steps in found["relearning"].items():
        steps = ", ".join(f"{n}: {v['seen']:.3f} / {v['unseen']:.3f}" for n, v in by_steps.items())
        lines.append((f"relearned from {start}, half / other half", steps))
    return lines


def _words(numbers: Mapping[str, float]) -> str:
    return (
        f"NLL {numbers['nll']:.3f}, probability {numbers['probability']:.3f}, "
        f"truth ratio {numbers['truth_ratio']:.2f}, ROUGE-L {numbers['rouge_l_recall']:.3f}"
    )

"""Account of a run in sentences: its cost, what left its clients, absences, and trust in names."""

from __future__ import annotations

from collections import defaultdict

from fedsa_lora.report.wording import ROLE_NAMES, amount, counted, duration, listed, roles, split_of
from fedsa_lora.runs.reading import Row

FULL, SENT = "The full model", "This run, as sent"  # uploads
DENSE = "dense fp32"  # the codec that sends every value as it is
CAUTION = (
    "This is data minimisation, not a privacy guarantee: what is sent was trained on the client's data "
    "and can still reveal something about it."
)

STATES = (
    "In every step also the activations of each token after the first blocks, and gradients: whoever holds "
    "the weights can reconstruct the texts from them (docs/split_learning.md)."
)


def cost(summary: Row) -> list[str]:
    """Words the bytes that the run sent, and those that FedIT, which also sends B, would have sent."""
    each, fedit = summary.get("bytes_up_per_client_round"), summary.get("bytes_up_share_ab")
    lines = [
        f"{amount(summary.get('bytes_up'))} up and {amount(summary.get('bytes_down'))} down, "
        f"{counted(summary.get('rounds', 0), 'round')} with {counted(summary.get('clients', 0), 'client')}, "
        f"in {duration(summary.get('seconds'))}.",
    ]
    if each and summary.get("step_bytes"):
        lines.append(
            f"Of this, a client sends {amount(each)} at the end of each round; the rest is sent in steps."
        )
    elif each:
        coded = summary.get("codec") or DENSE
        lines.append(
            f"A client sends {amount(each)} per round{'' if coded == DENSE else f', encoded as {coded}'}."
        )
    if each and fedit and fedit > each:
        lines.append(
            f"FedIT, which sends A and B uncompressed, would send {amount(fedit)}: {fedit / each:.1f} "
            f"times that."
        )
    if steps := summary.get("step_bytes"):
        kinds = ", ".join(f"{name.replace('_', ' ')} {amount(size)}" for name, size in steps.items())
        lines.append(f"Of this, between the parts of the model, in steps and evaluations: {kinds}.")
    if error := summary.get("aggregation_error"):
        lines.append(
            f"The mean A times the mean B misses the mean of the products B A by {error:.1%} (last round)."
        )
    return lines


def uploads(summary: Row) -> dict[str, float]:
    """Bytes of a client's upload in a round, by what it holds: the full model without adapters, A and B, or
    A, at 4 bytes a value, with the head where it is shared; and those that the run sent on average, headers
    and coding included. Nothing of a run without adapters, one that sent nothing, and one whose
    steps send states as well."""
    parameters, fedit = summary.get("parameters") or {}, summary.get("bytes_up_share_ab")
    each = summary.get("bytes_up_per_client_round")
    if not parameters.get("A") or not fedit or not each:
        return {}
    both, one = "A and B", "A"
    if ROLE_NAMES["head"] in roles(summary, "shared"):
        both, one = "A, B and the head", "A and the head"
    return {
        FULL: 4 * (parameters["base"] + parameters["head"]),
        both: fedit,
        one: fedit - 4 * parameters["B"],
        SENT: each,
    }


def what_left(summary: Row) -> list[str]:
    """Words what left the clients, what was checked about it, and what that does not prove."""
    shared, local = roles(summary, "shared"), roles(summary, "local")
    if not shared:
        return ["Nothing: this split shares no part of the model."]
    cut = summary.get("step_bytes")
    sent = f"Only {listed(shared)}" if local and not cut else _capital(listed(shared))
    lines = [f"{sent}{_share_of_all(summary.get('parameters') or {})}."]
    if cut:
        lines.append(STATES)
    if warning := summary.get("warning"):
        lines.append(f"Warning: {warning}. {_capital(listed(local))} were passed to the next client.")
    elif local:
        lines.append(f"{_capital(listed(local))} stayed on each client.")
    lines += _proof(summary.get("proof") or {}, "" if summary.get("clients") == 1 else _own(summary))
    return [*lines, CAUTION]


def _own(summary: Row) -> str:
    """The first role that is not the same for all clients, B before the head; empty where all are."""
    split = split_of(summary) if summary.get("split") else {"B": "local"}
    own = [
        role for role in ("B", "A", "head") if not split.get(role, "frozen").startswith(("shared", "frozen"))
    ]
    return own[0] if own else ""


def _share_of_all(parameters: Row) -> str:
    sent, every = parameters.get("shared"), sum(parameters.get(role) or 0 for role in ROLE_NAMES)
    return f", {sent:,} of {every:,} parameters ({sent / every:.2%})" if sent and every else ""


def _proof(proof: Row, own: str) -> list[str]:
    """Words the evidence; ``own`` is a role of which each of several clients has its own values."""
    lines = []
    if private := proof.get("private_values"):
        place = f"{counted(proof['messages'], 'message')} ({amount(proof.get('bytes_searched'))})"
        found = proof["matches"]
        lines.append(
            f"Warning: {counted(found, 'private value')} found in {place}."
            if found
            else f"Checked: {place} searched, each for up to {private:,} private values; 0 found."
        )
    if breaks := proof.get("chain_breaks"):
        lines.append(f"Warning: {breaks:,} times a client did not continue from its own state.")
    elif breaks == 0:
        lines.append("Checked: each client continued from its own state in every round.")
    if own and proof.get("distinct_b") is not None:
        lines.append(
            f"Checked: no two clients ended with the same {own}."
            if proof["distinct_b"]
            else f"Warning: at least two clients ended with the same {own}."
        )
    return lines


def absences(rounds: list[Row], clients: int) -> list[str]:
    """Words which rounds were skipped, who was left out of which, and when clients were not there."""
    lines = []
    if skipped := [row["round"] for row in rounds if row.get("skipped")]:
        lines.append(f"Skipped for too few results, with shared values unchanged: {rounds_of(skipped)}.")
    left_out, fewer = defaultdict[str, list[int]](list), defaultdict[int, list[int]](list)
    for row in rounds:
        for client in row.get("excluded") or []:
            left_out[client].append(row["round"])
        if row.get("present", clients) < clients:
            fewer[row["present"]].append(row["round"])
    lines += [
        f"Client {client} was excluded from {rounds_of(numbers)}: it kept failing."
        for client, numbers in sorted(left_out.items())
    ]
    lines += [
        f"In {rounds_of(numbers)}, {there} of {counted(clients, 'client')} were connected."
        for there, numbers in fewer.items()
    ]
    return lines


def naming(federation: Row) -> list[str]:
    """Words how far the names of a deployed run's clients can be trusted; nothing of a simulation."""
    if not federation.get("superlink"):
        return []
    if federation.get("registry"):
        return ["Client names were verified by the keys of the registry in every round."]
    return [
        "Client names were not verified: without federation.registry no keys are checked, and a client is "
        "the first node that claims its name."
    ]


def rounds_of(numbers: list[int]) -> str:
    """Ascending: [3] -> 'round 3'; [1, 2, 3, 7] -> 'rounds 1 to 3 and 7'."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][-1] + 1:
            spans[-1].append(n)
        else:
            spans.append([n])
    words = [str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans]
    return f"round{'' if len(numbers) == 1 else 's'} {listed(words)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

"""Names and roles of a model's tensors: PEFT's, less what PEFT wrapped around them."""

from __future__ import annotations

from fedsa_lora.exchange.arrays import Role
from fedsa_lora.learning.lora import ADAPTER
from fedsa_lora.tasks.heads import Head

DIFFERENCE = ".difference"  # ends the name of a tensor that is exchanged as its difference from its start
PREFIX = "base_model.model."
_ROLES: dict[str, Role] = {
    "lora_A": "A",
    "lora_embedding_A": "A",
    "vera_lambda_d": "A",
    "lora_B": "B",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "B",
    "vera_lambda_b": "B",
}


def plain_name(parameter: str) -> str:
    """PEFT's name of a parameter, less what PEFT wrapped around it."""
    name = parameter.removeprefix(PREFIX).replace(f".modules_to_save.{ADAPTER}", "")
    return name.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")


def role_of(parameter: str, head: Head) -> tuple[Role, str]:
    """The role of a parameter, and the layer that it belongs to."""
    name = plain_name(parameter)
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part in _ROLES:
            return _ROLES[part], ".".join(parts[:place])
    return "head" if head.holds(name) else "base", ".".join(parts[:-1])

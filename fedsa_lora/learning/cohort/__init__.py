"""Training of several clients in one pass over flat tokens without padding, K clients at a time."""

from fedsa_lora.learning.cohort.fit import why_not
from fedsa_lora.learning.cohort.trainer import Cohort

__all__ = ["Cohort", "why_not"]

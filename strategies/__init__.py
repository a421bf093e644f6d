"""Server side: Flower strategies for messages that carry part of an adapter."""

from strategies.cohort import Cohort
from strategies.fedsa import Evaluation, FedSA, Recorder

__all__ = ["Cohort", "Evaluation", "FedSA", "Recorder"]

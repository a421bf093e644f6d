"""The server side: Flower strategies that speak the project's messages."""

from strategies.adaptive import AdaptiveFedSA
from strategies.amended import Bulyan, QFedAvg
from strategies.attendance import Attendance
from strategies.bounds import Bounds
from strategies.clustered import ClusteredFedSA
from strategies.exact import FedEx, FedRot, FedSVD, FlexLoRA, FLoRA
from strategies.fedsa import FedSA
from strategies.ledger import Evaluation, Recorder
from strategies.roster import Roster
from strategies.topk import TopKFedSA

__all__ = [
    "AdaptiveFedSA",
    "Attendance",
    "Bounds",
    "Bulyan",
    "ClusteredFedSA",
    "Evaluation",
    "FLoRA",
    "FedEx",
    "FedRot",
    "FedSA",
    "FedSVD",
    "FlexLoRA",
    "QFedAvg",
    "Recorder",
    "Roster",
    "TopKFedSA",
]

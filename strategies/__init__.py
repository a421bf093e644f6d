"""The server side: Flower strategies that speak the project's messages."""

from strategies.adaptive import AdaptiveFedSA
from strategies.clustered import ClusteredFedSA
from strategies.cut import SplitFedSA
from strategies.fedsa import FedSA
from strategies.round.attendance import Attendance
from strategies.round.bounds import Bounds
from strategies.round.ledger import Evaluation, Recorder
from strategies.round.roster import Roster
from strategies.rules.amended import Bulyan, QFedAvg
from strategies.rules.exact import FedEx, FedRot, FedSVD, FlexLoRA, FLoRA
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
    "SplitFedSA",
    "TopKFedSA",
]

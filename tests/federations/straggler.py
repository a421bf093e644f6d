"""A plug-in for the tests of a real run: one client takes too long in one round."""

import time
from dataclasses import dataclass

from fedsa_lora.learning.personalisation import Personalisation


@dataclass(frozen=True)
class Straggler(Personalisation):
    """Client ``client`` sleeps in round ``round`` before it trains."""

    client: str = "1"
    round: int = 2
    seconds: float = 0.0

    def fit(self, local, personal):
        if (local.client, local.round) == (self.client, self.round):
            time.sleep(self.seconds)
        return super().fit(local, personal)

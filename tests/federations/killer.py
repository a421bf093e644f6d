"""A plug-in for the tests of a real run: the process of every client is killed while it trains."""

import os
import signal
from dataclasses import dataclass

from fedsa_lora.learning.personalisation import Personalisation


@dataclass(frozen=True)
class Killer(Personalisation):
    """Training ends the process, as the kernel does where memory is short."""

    def fit(self, local, personal):
        os.kill(os.getpid(), signal.SIGKILL)

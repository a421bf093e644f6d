"""A plug-in for the tests of a real run: the process of a client is killed while it trains."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from fedsa_lora.learning.personalisation import Personalisation
from fedsa_lora.tasks.causal_lm import CausalLMTask


@dataclass(frozen=True)
class Killer(Personalisation):
    """Training ends the process, as the kernel does where memory is short: that of every client, or of
    ``client`` alone, and with a ``once``, a file that is then made, the first time only."""

    client: str = ""
    once: str = ""

    def fit(self, local, personal):
        if self.client not in ("", local.client) or (self.once and Path(self.once).exists()):
            return super().fit(local, personal)
        if self.once:
            Path(self.once).touch()
        return os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DeadlyTask(CausalLMTask):
    """The first loss that is computed ends the process: ``once`` is a file that is then made."""

    once: str = ""

    def loss(self, model, batch):
        if Path(self.once).exists():
            return super().loss(model, batch)
        Path(self.once).touch()
        return os.kill(os.getpid(), signal.SIGKILL)

"""The ClientApp process of a node: it answers one message after the other, and the backbone stays in memory.

Flower 1.41 starts a process for every message, whatever its isolation, and imports and loads everything
anew. This one is run as a script that knows nothing but Flower: what it imports as ``fedsa_lora`` must be the
app that the run brought along, not what is installed here. One process serves one app; it reads the tokens of
its tasks, one a line, and ends with its input.
"""

from __future__ import annotations

import logging
import sys

from flwr.app import Context, Error, Message
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

log = logging.getLogger("flwr")


class Resident:
    """Answers the tasks of one SuperNode, whose Runtime API is at ``address`` on this machine."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._app: ClientApp | None = None

    def serve(self, token: str) -> None:
        """Answer the message of a task. An exception of the app is the answer, as in Flower's own process;
        so is the end of a run meanwhile, which Flower signals by SIGINT."""
        retry = make_simple_http_retry_invoker()
        client = RuntimeHttpClient.from_server_address(
            self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor("flwr-clientapp"),
                RuntimeTokenHttpInterceptor(token),
            ],
            retry_invoker=retry,
        )
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        try:
            message, context, run, fab = pull_task_input(client)
            reply, details = self._answer(message, context, run, fab)
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.FAILED if details else SubStatus.COMPLETED, details)
        finally:
            retry.max_tries = 1
            if heartbeat.is_running:
                heartbeat.stop()
            client.close()

    def _answer(self, message: Message, context: Context, run: Run, fab: Fab) -> tuple[Message, str]:
        """The app's reply and "", or an error and its reason, which says nothing of this machine: the app
        answers for itself once it is there."""
        try:
            if self._app is None:
                install_from_fab(fab.content, skip_prompt=True)
                load = get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
                self._app = load(run.fab_id, run.fab_version, fab.hash_str)
            return self._app(message=message, context=context), ""
        except (Exception, KeyboardInterrupt) as error:
            log.exception("ClientApp raised an exception")
            reason = f"{type(error).__name__}: the app of this run cannot be used here; see the node's log"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message), reason


def main() -> None:
    """Serve the tasks whose tokens come in."""
    resident = Resident(sys.argv[1])
    for line in sys.stdin:
        try:
            resident.serve(line.strip())
        except (Exception, KeyboardInterrupt):  # the SuperNode is gone, or took the task back: it asks again
            log.exception("a task was not answered")


if __name__ == "__main__":
    main()

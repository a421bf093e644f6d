"""Why a client failed, without what Flower and Ray put around it, and once for all that failed alike."""

import pytest

from strategies.round.admission import MAX_REASON, Remark
from strategies.round.reasons import KILLED, causes, plain_reason

TASK_ERROR = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\
ray::ClientAppActor.run() (pid=5634, ip=10.0.0.1, actor_id=6a1ff2, repr=<flwr.simulation.ray_transport.\
ray_actor.ClientAppActor object at 0x7f0a3c5d1e50>)
  File "/tmp/fsl-x/flwr/apps/fedsa_lora/client_app.py", line 44, in client_fn
    node, _, bench, store = _serve(context)
                            ^^^^^^^^^^^^^^^
fedsa_lora.errors.TrainingError: the loss became nan at step 1 of 3: lower train.lr

The above exception was the direct cause of the following exception:

ray::ClientAppActor.run() (pid=5634, ip=10.0.0.1, actor_id=6a1ff2, repr=<ClientAppActor object at 0x7f>)
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException:
Exception ClientAppException occurred. Message: the loss became nan at step 1 of 3: lower train.lr'>"""
DIED = """<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.
\tclass_name: ClientAppActor
\tactor_id: 6a1ff2
Worker exit detail: the worker may have exceeded K8s pod memory limits.'>"""
LOST = "TrainingError: the loss became nan at step 1 of 3: lower train.lr"


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        (TASK_ERROR, LOST),
        (
            f"Message contains an Error (reason: {TASK_ERROR}). It originated during client-side execution.",
            LOST,
        ),
        (DIED, KILLED),
        ("<class 'ray.exceptions.OutOfMemoryError'>:<'Task was killed'>", KILLED),
        ("<class 'fedsa_lora.errors.StoreError'>:<'it's in use:\n by 7'>", "StoreError: it's in use: by 7"),
        (LOST, LOST),
        ("ClientApp stopped responding.", "ClientApp stopped responding."),
    ],
)
def test_a_reason_is_the_exception_of_the_clients_app(wrapped, plain):
    assert plain_reason(wrapped) == plain


def test_a_cause_is_told_once_with_all_that_it_befell():
    at = "the loss became nan at step {} of 3, lr 1e+09"
    failures = [Remark.of(c, "error", at.format(step)) for c, step in (("0", 1), ("4", 2), ("7", 3))]
    other = Remark.of("5", "lost", "late: no answer within 30 s")
    assert causes([failures[0], other, *failures[1:]]) == [
        "client 0: the loss became nan at step 1 of 3, lr 1e+09 (and 2 more: 4, 7)",
        "client 5: late: no answer within 30 s",
    ]
    many = [Remark.of(str(client), "error", "gone") for client in range(100)]
    assert causes(many) == ["client 0: gone (and 99 more)"]
    assert causes([Remark.of(None, "lost", "gone")] * 2) == ["gone (and 1 more)"]


def test_a_long_reason_is_whole_and_an_endless_one_says_what_was_cut():
    whole = "a column is missing, " * 20
    assert Remark.of("0", "error", whole).reason == whole
    endless = Remark.of("0", "error", "x" * 10_000_000)
    assert endless.reason == f"{'x' * MAX_REASON} ({10_000_000 - MAX_REASON:,} more characters)"

"""Encoded data of clients stay in memory up to a number of bytes."""

import numpy as np

from fedsa_lora.client.workbench import LastServed
from fedsa_lora.tasks.task import OBJECT, ClientData, Examples

NONE = Examples({}, np.zeros(0, np.int64), np.zeros(0, np.int64))


def of_bytes(count: int) -> ClientData:
    rows = [np.zeros(count, np.int8)]
    return ClientData(Examples({"x": rows}, np.zeros(1, np.int64), np.ones(1, np.int64)), NONE, NONE)


def test_the_last_served_stay_in_memory_up_to_a_number_of_bytes_and_one_always():
    loaded: list[str] = []

    def load(client: str) -> ClientData:
        loaded.append(client)
        return of_bytes(1_000 - OBJECT)

    data = LastServed(load, 2_500)
    for client in ("a", "b", "a", "c", "a", "b"):  # c puts b out, which was served before a
        assert data(client).bytes == 1_000
    assert loaded == ["a", "b", "c", "b"]
    small = LastServed(load, 10)
    assert small("a") is small("a")

"""Values that were used last stay in memory up to a number of bytes."""

from functools import partial

from fedsa_lora.client.last_used import LastUsed


def test_the_last_used_stay_in_memory_up_to_a_number_of_bytes_and_one_always():
    loaded: list[str] = []

    def load(key: str) -> bytes:
        loaded.append(key)
        return bytes(1_000)

    held = LastUsed(len, 2_500)
    for key in ("a", "b", "a", "c", "a", "b"):  # c puts b out, which was used before a
        assert held(key, partial(load, key)) == bytes(1_000)
    assert loaded == ["a", "b", "c", "b"]
    small = LastUsed(len, 10)
    assert small("a", partial(load, "a")) is small("a", partial(load, "a"))

"""A codec: encodes an update as bytes, and decodes it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.arrays import Vector, check_vector
from fedsa_lora.exchange.codec import Codec, Sparse
from fedsa_lora.exchange.numbers import NumberFormat


@dataclass(frozen=True)
class Sign(Codec):
    """The sign of each value, in one bit, and the mean magnitude (EF-signSGD, arXiv:1901.09847). The client
    adds the compression error to its next update."""

    values: NumberFormat = "fp32"  # of the magnitude
    block: int = 1
    error_feedback: bool = True

    selection = "sign"
    sparse = False
    lossless = False

    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        check_vector(vector)
        magnitude = np.abs(vector).mean(dtype=np.float32) if len(vector) else np.float32(0)
        bits = np.packbits(vector >= 0)
        return np.concatenate([np.frombuffer(magnitude.tobytes(), np.uint8), bits])

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        payload = self.checked(payload, size)
        if len(payload) != self.max_bytes(size):
            raise WireError(f"expected {self.max_bytes(size)} bytes, got {len(payload)}")
        magnitude = check_vector(payload[:4].view(np.float32))
        signs = np.unpackbits(payload[4:], count=size).astype(np.float32)
        return Sparse(size, None, magnitude * (2 * signs - 1))

    def max_bytes(self, size: int) -> int:
        return 4 + -(-size // 8)

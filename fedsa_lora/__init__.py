"""Federated LoRA fine-tuning of pretrained models with Flower.

W = W0 + (alpha / r) B A. Clients train A and B; in FedSA-LoRA (arXiv:2410.01463) they share A and keep B and
their head.

- ``fedsa-lora run`` plays a federation from a config: docs/federation.md.
- ``fedsa_lora.flower`` makes the ClientApp and the ServerApp of a Flower app with a model and data of your
  own, or from a Trainer of transformers: docs/extending.md.
- ``fedsa_lora.clip`` adds LoRA to a CLIP model of any federation: docs/clip.md.
- ``fedsa_lora.runs.load_run`` reads a run directory as pandas frames.
- ``strategies`` has Flower strategies: ``FedSA`` around any of Flower's.
"""

__version__ = "0.1.0"

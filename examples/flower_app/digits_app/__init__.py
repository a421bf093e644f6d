"""A Flower app that fine-tunes your own torch model with FedSA-LoRA."""

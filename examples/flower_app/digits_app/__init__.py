"""A Flower app that fine-tunes a custom torch model with FedSA-LoRA."""

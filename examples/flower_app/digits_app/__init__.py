"""A Flower app that fine-tunes a torch model of its own with FedSA-LoRA."""

"""A Trainer of transformers as a Flower app with FedSA-LoRA."""

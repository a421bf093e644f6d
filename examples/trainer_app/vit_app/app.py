"""An ordinary function that makes a Trainer, and the two apps that Flower runs."""

from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification


def trainer(partition: int, partitions: int) -> Trainer:
    """The Trainer of a client, on every n-th digit, a fifth of them for evaluation."""
    digits = load_digits()
    pixels = digits.images[:, None].astype("float32") / 16
    rows = [{"pixel_values": pixels[i], "labels": int(digits.target[i])} for i in range(len(pixels))]
    own = rows[partition::partitions]
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return Trainer(
        model=ViTForImageClassification(ViTConfig(**sizes, **layers, num_labels=10)),
        args=TrainingArguments(learning_rate=1e-2, per_device_train_batch_size=16, max_steps=5),
        train_dataset=own[len(own) // 5 :],
        eval_dataset=own[: len(own) // 5],
    )


# Turns the function into a federation:
from peft import LoraConfig  # noqa: E402

from fedsa_lora.flower import trainer_apps  # noqa: E402

lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
apps = trainer_apps(trainer, lora, clients=4, classes=list("0123456789"))
client = apps.client
server = apps.server

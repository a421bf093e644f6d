"""quick_clip_lora on both kinds of models, the counts of the table, the five checks, and what is imported."""

import inspect
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_cases import IMAGES, LABELS, MODELS, WORDS
from transformers import CLIPVisionModel

from fedsa_lora.clip import CLIPClassifier, LoRAConfig, LoRAModelManager, checks, counts, quick_clip_lora
from fedsa_lora.errors import ConfigError, DataError, LayoutError, ModelError, TrainingError

ROOT = Path(__file__).parents[2]
BATCH = {"pixel_values": IMAGES, "labels": LABELS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model of each kind."""
    places = {kind: tmp_path_factory.mktemp("models") / kind for kind in MODELS}
    for kind, place in places.items():
        MODELS[kind]().save_pretrained(place)
    return {kind: str(place) for kind, place in places.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_a_classifier_with_lora_in_one_call(folders, kind):
    wrapper = quick_clip_lora(model_name=folders[kind], num_classes=3, lora_r=4)
    assert (wrapper.lora_config.r, wrapper.lora_config.lora_alpha) == (4, 8)
    assert wrapper.forward(IMAGES).shape == wrapper(IMAGES).shape == (4, 3)
    sent = wrapper.get_parameters({})
    assert sum(value.size for value in sent) == wrapper.adapter.trainable_parameters
    assert not any("text_model" in name for name in wrapper.adapter.names)
    first = wrapper.train_step(BATCH)
    for _ in range(10):
        last = wrapper.train_step(BATCH)
    assert last["loss"] < first["loss"]
    assert all(
        not np.array_equal(a, b) for a, b in zip(sent[-2:], wrapper.get_parameters()[-2:], strict=True)
    )
    found = wrapper.evaluate([BATCH, {"pixel_values": IMAGES[:1], "labels": LABELS[:1]}])
    assert found["num_examples"] == 5
    assert 0 <= found["accuracy"] <= 1
    with torch.no_grad():
        wrapper.eval()
        logits = wrapper(torch.cat([IMAGES, IMAGES[:1]]))
        loss = torch.nn.functional.cross_entropy(logits, torch.cat([LABELS, LABELS[:1]]))
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_its_base_is_the_pretrained_model_to_the_bit(folders, kind):
    wrapper = quick_clip_lora(folders[kind], 3, save_only_trainable=False)
    wrapper.disable_lora_layers()
    pretrained, clip = MODELS[kind](), wrapper.clip.eval()
    inputs = {"input_ids": WORDS, "pixel_values": IMAGES}
    assert torch.equal(clip(**inputs).logits_per_image, pretrained(**inputs).logits_per_image)
    assert wrapper.adapter.base.path == folders[kind]
    assert len(wrapper.get_parameters()) == len(wrapper.federated_model.state_dict())


def test_an_exchange_of_everything(folders):
    model = CLIPClassifier(MODELS["clip"](), 3)
    sent = model.get_parameters()
    model.set_parameters([value * 0 for value in sent])
    assert not any(value.any() for value in model.get_parameters())
    model.set_parameters(sent)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_parameters(), sent, strict=True))
    with pytest.raises(LayoutError):
        model.set_parameters(sent[1:])


def test_what_cannot_be_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="num_classes is 0"):
        quick_clip_lora(folders["clip"], 0)
    with pytest.raises(ConfigError, match="r: 0"):
        quick_clip_lora(folders["clip"], 2, lora_r=0)
    with pytest.raises(ModelError, match="no model at"):
        quick_clip_lora("./nowhere/at/all", 2)
    CLIPVisionModel(MODELS["clip"]().config.vision_config).save_pretrained(tmp_path / "vision")
    with pytest.raises(ModelError, match="is a CLIPVisionModel; expected a CLIPModel"):
        quick_clip_lora(str(tmp_path / "vision"), 2)
    model = CLIPClassifier(MODELS["clip"](), 3)
    with pytest.raises(DataError, match="no image"):
        model.evaluate([])
    with pytest.raises(TrainingError, match="loss is nan"):
        model.train_step({**BATCH, "pixel_values": IMAGES * float("nan")})


def test_a_model_of_the_hub_is_saved_and_loaded_over_its_base(folders, tmp_path):
    stored = LoRAModelManager(tmp_path)
    wrapper = quick_clip_lora(folders["dual"], 3, lora_r=2, target_components=["encoder", "classifier"])
    wrapper.train_step(BATCH)
    stored.save_model("one", wrapper)
    assert stored.get_model_info("one").base.path == folders["dual"]
    other = quick_clip_lora(folders["dual"], 3, lora_r=2, target_components=["encoder", "classifier"], seed=0)
    stored.load_model("one", other)
    assert torch.equal(other.eval()(IMAGES), wrapper.eval()(IMAGES))


# Counts

VIT_B_32 = {
    "six kinds of both towers": (2_211_840, 4_423_680, 8_847_360),
    "six kinds of the vision tower": (1_327_104, 2_654_208, 5_308_416),
    "q, k, v, out of the vision tower": (589_824, 1_179_648, 2_359_296),
}


def test_counts_are_those_of_the_real_sizes_and_of_the_page():
    assert counts.parameters() == 151_277_313
    found = {
        words: tuple(counts.trainable(replace(settings, r=r)) for r in counts.RANKS)
        for words, settings in counts.SETTINGS.items()
    }
    assert found == VIT_B_32
    claimed = {1_200_000, 2_400_000, 4_800_000}
    assert not claimed & {count for row in found.values() for count in row}
    page = (ROOT / "docs" / "clip.md").read_text()
    for words, row in VIT_B_32.items():
        assert f"| {words} | {' | '.join(f'{count:,}' for count in row)} |" in page


def test_the_table_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(counts, "RANKS", (8,))
    monkeypatch.setattr(sys, "argv", ["clip", "--counts"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("fedsa_lora.clip", run_name="__main__")
    assert ended.value.code == 0
    assert "| six kinds of the vision tower | 1,327,104 |" in capsys.readouterr().out


# The five checks


def run_checks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clip"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("fedsa_lora.clip", run_name="__main__")
    return ended.value.code, capsys.readouterr().out.splitlines()


def test_the_five_checks_pass_and_say_what_they_measured(monkeypatch, capsys):
    code, lines = run_checks(monkeypatch, capsys)
    assert (code, len(lines)) == (0, 5)
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"{number} .*: passed \(.*\d.*\)", line)


def test_a_check_that_fails_makes_the_exit_code_1(monkeypatch, capsys):
    for name in ("interface", "exchange", "storage", "layers"):
        monkeypatch.setattr(checks, name, lambda: (True, "1"))
    monkeypatch.setattr(checks, "presets", lambda: LoRAConfig(r=0))
    code, lines = run_checks(monkeypatch, capsys)
    assert code == 1
    assert "FAILED (LoRAConfig: r: 0" in lines[0]
    assert all("passed" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("broken", "value", "check"),
    [
        (
            "fedsa_lora.clip.config.LoRAConfig.for_classification_head",
            staticmethod(LoRAConfig),
            checks.presets,
        ),
        ("fedsa_lora.clip.wrapper.hand_to_optimizers", lambda *arguments: None, checks.interface),
        ("fedsa_lora.clip.tensors.TrainableTensors.write", lambda *arguments: None, checks.exchange),
        ("fedsa_lora.clip.stored_models._targets_fault", lambda *arguments: "", checks.storage),
        ("fedsa_lora.clip.wrapper.recompute_layers", lambda *arguments: None, checks.layers),
    ],
)
def test_a_check_fails_where_its_part_does_nothing(monkeypatch, broken, value, check):
    monkeypatch.setattr(broken, value)
    passed, _ = check()
    assert not passed


def test_it_runs_without_flower_and_hydra():
    code = (
        "import sys, fedsa_lora.clip\n"
        "print(sorted({'flwr', 'hydra', 'ray', 'omegaconf'} & set(sys.modules)))\n"
        "from fedsa_lora.clip import LoRAConfig, quick_clip_lora"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_call_of_the_page_is_the_signature():
    names = list(inspect.signature(quick_clip_lora).parameters)
    assert names[:3] == ["model_name", "num_classes", "lora_r"]

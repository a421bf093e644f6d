"""The settings of LoRA on CLIP: defaults, presets, faults, and files by name."""

import pytest

from fedsa_lora.clip import LoRAConfig, LoRAConfigManager
from fedsa_lora.errors import ConfigError, RunError


def test_defaults_and_presets():
    config = LoRAConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.1)
    assert (config.target_modules, config.bias) == (None, "none")
    assert (config.towers, config.components) == ("vision", ("encoder",))
    for r, alpha in ((8, 16), (16, 32), (32, 64)):
        assert LoRAConfig.for_clip_model(r=r) == LoRAConfig.for_clip_model(r=r, lora_alpha=alpha)
        assert (LoRAConfig.for_clip_model(r=r).r, LoRAConfig.for_clip_model(r=r).lora_alpha) == (r, alpha)
    assert LoRAConfig.for_clip_model(towers="both").towers == "both"
    head = LoRAConfig.for_classification_head()
    assert (head.r, head.lora_alpha, head.components) == (8, 16, ("classifier",))


def test_all_faults_are_reported_at_once_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        LoRAConfig(r=0, lora_alpha=-1, lora_dropout=1, bias="lora", towers="visual", components=("encoders",))
    message = str(caught.value)
    for words in ("r: 0", "lora_alpha: -1", "lora_dropout: 1", "lora_only", "vision", "'encoder'"):
        assert words in message, message


@pytest.mark.parametrize(
    "wrong", [{"r": True}, {"r": "16"}, {"target_modules": "q_proj"}, {"target_modules": []}]
)
def test_a_value_of_another_type_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoRAConfig(**wrong)


@pytest.mark.parametrize("components", [(), ("encoder", "encoder")])
def test_components_are_named_once_and_not_empty(components):
    with pytest.raises(ConfigError, match="each once"):
        LoRAConfig(components=components)


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(),
        LoRAConfig.for_classification_head(),
        LoRAConfig(target_modules=["q_proj", "v_proj"], bias="all", towers="both", lora_dropout=1e-3),
        LoRAConfig(components=("encoder", "classifier")),
    ],
)
def test_a_saved_config_is_loaded_as_it_was(tmp_path, config):
    stored = LoRAConfigManager(tmp_path / "not" / "there")
    assert stored.list_configs() == []
    stored.save_config("one", LoRAConfig(r=1))
    stored.save_config("one", config)
    stored.save_config("b.2", config)
    assert stored.load_config("one") == config
    assert stored.list_configs() == ["b.2", "one"]


@pytest.mark.parametrize("name", ["../one", "/one", "", ".hidden", "a/b", "a\0b", None, LoRAConfig()])
def test_a_name_stays_in_its_folder(tmp_path, name):
    stored = LoRAConfigManager(tmp_path / "configs")
    for attempt in (lambda: stored.save_config(name, LoRAConfig()), lambda: stored.load_config(name)):
        with pytest.raises(ConfigError, match="not a valid name"):
            attempt()
    assert list(tmp_path.rglob("*.yaml")) == []


def test_an_unknown_config_names_the_nearest(tmp_path):
    stored = LoRAConfigManager(tmp_path)
    with pytest.raises(RunError, match="none yet"):
        stored.load_config("vision")
    stored.save_config("vision", LoRAConfig())
    with pytest.raises(RunError, match="did you mean 'vision'"):
        stored.load_config("visoin")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("r: 0\nlora_alpa: 3\nlora_r: 3\n", ["r: 0", "lora_alpha", "one.lora_r: no such key"]),
        ("r: [\n", ["cannot be read"]),
        ("- 1\n", ["expected settings"]),
        ("target_modules: []\n", ["empty"]),
    ],
)
def test_a_file_with_faults_is_refused_with_all_of_them(tmp_path, text, words):
    (tmp_path / "one.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        LoRAConfigManager(tmp_path).load_config("one")
    assert [word for word in words if word not in str(caught.value)] == []

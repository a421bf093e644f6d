"""Settings of LoRA by name, each in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from yaml import YAMLError  # type: ignore[import-untyped]

from fedsa_lora.binding import bind, raise_faults, unknown
from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.clip.storage import absent, checked, made
from fedsa_lora.config import yaml_text
from fedsa_lora.errors import ConfigError
from fedsa_lora.files import write_atomically

_SUFFIX = ".yaml"


class LoRAConfigManager:
    """Settings that are saved, loaded and listed by name, in the files ``NAME.yaml`` of a folder."""

    def __init__(self, config_dir: str | Path = "lora_configs") -> None:
        self.folder = Path(config_dir).expanduser()

    def save_config(self, name: str, config: LoRAConfig) -> Path:
        """Write settings under a name, in the place of those that were there, and return their file. Raises
        ConfigError for what is no name, and RunError where it cannot be written."""
        file = f"{checked(name)}{_SUFFIX}"
        return write_atomically(made(self.folder) / file, yaml_text.dump(config.to_dict()).encode())

    def load_config(self, name: str) -> LoRAConfig:
        """The settings of a name. Raises RunError where there are none, and ConfigError, which lists every
        fault, where they are no settings."""
        path = self.folder / f"{checked(name)}{_SUFFIX}"
        try:
            node = yaml_text.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise absent("config", name, self.folder, self.list_configs()) from None
        except (OSError, ValueError, YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        faults: list[str] = []
        if isinstance(node, Mapping):
            # here, as the words of other programs that bind knows are put in those of a run's config
            known = [field.name for field in fields(LoRAConfig)]
            faults = [unknown(f"{name}.{key}", "key", known) for key in node if key not in known]
            node = {key: value for key, value in node.items() if key in known}
        config = bind(LoRAConfig, node, name, faults)
        raise_faults(faults)
        assert config is not None
        return config

    def list_configs(self) -> list[str]:
        """The names of all settings, sorted; none where there is no folder."""
        return sorted(path.stem for path in self.folder.glob(f"*{_SUFFIX}") if path.is_file())

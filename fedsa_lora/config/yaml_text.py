"""Resolved settings as YAML, as OmegaConf writes and reads it, without its nodes: ten times faster."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

# libyaml's, where PyYAML was built with it
_FastDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FLOAT, _TIMESTAMP = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
# YAML 1.1 takes 1e-3 for a text; OmegaConf, and everybody who writes a learning rate, for a number
_EXPONENT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Dumper(_FastDumper):  # type: ignore[misc]
    """Puts a text that would be read as a number between quotation marks."""

    def text(self, text: str) -> Any:
        style = "'" if _EXPONENT.match(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


class _Loader(_FastLoader):  # type: ignore[misc]
    """Takes 1e-3 for a number, a date for a text, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or a mapping, which the constructor refuses
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found duplicate key {key.value}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Dumper.add_representer(str, _Dumper.text)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789."))


def dump(settings: dict[str, Any]) -> str:
    """Settings as YAML that ``parse`` and OmegaConf read back to equal settings."""
    text: str = yaml.dump(settings, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    return text


def parse(text: str) -> Any:
    """Reads what a YAML text holds. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Loader)  # a safe loader: it makes plain values alone

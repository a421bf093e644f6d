"""Words of a model's config by which transformers runs code that comes with a model, or loads other files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CODE = ("trust_remote_code", "auto_map", "code_revision")
_WORD = re.compile(r"[\w.+ -]*")


def names_code(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config, at any depth, that name code: of a model, or of the hub's kernels."""
    found = [key for key in _CODE if key in config]
    found += [key for key, value in config.items() if "implementation" in str(key) and "/" in str(value)]
    for value in config.values():
        if isinstance(value, Mapping):
            found += names_code(value)
    return found


def no_plain_values(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config whose value holds more than numbers and words, such as a path or a URL."""
    return [str(key) for key, value in config.items() if not _is_plain(value)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None and ".." not in value and "--" not in value
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, Mapping):
        return all(_is_plain(str(key)) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float)

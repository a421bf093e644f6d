"""Words of a model's or tokenizer's config by which transformers runs code that comes with it, or opens files
of this machine that do not belong to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsa_lora.errors import ModelError

_CODE = ("trust_remote_code", "auto_map", "code_revision")
_WORD = re.compile(r"[\w.+ -]*")
# Arguments of tokenizers that are opened, or handed to a library that opens them. Of a vocabulary that is
# written out only a text is a file.
_PLACE = re.compile(r"(\w+_)?(files?|paths?|dir|spm|kwargs|inputs)")
_VOCABULARY = re.compile(r"(\w+_)?(vocab|merges)")
# Lists of files, one for each version of transformers, from which it takes one.
_VERSIONS = ("fast_tokenizer_files", "configuration_files")
# Often the places of the machine that saved the tokenizer: transformers never opens them.
_REPLACED = ("tokenizer_file", "special_tokens_map_file", "added_tokens_file", "name_or_path")
# Made of two tokenizers in separate folders, whose files are not checked.
_OF_FOLDERS = ("rag", "RagTokenizer", "RagTokenizerFast")
_CONFIG, _TOKENIZER, _SPECIAL = "config.json", "tokenizer_config.json", "special_tokens_map.json"


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


def check_versions(path: str, revision: str | None) -> None:
    """Raise ModelError where the config of a model (a folder or a hub id) names a file outside of its folder
    that is read in its place."""
    from fedsa_lora.tasks.checkpoint import stored_file

    if named := _of_versions(_read(stored_file(path, _CONFIG, revision, fetch=True))):
        raise ModelError(
            f"{path}: its {_CONFIG} names files outside its folder ({named[0]}): remove that there, or "
            "choose another model",
            sent="the model's config names files outside its folder",
            key="model.path",
        )


def check_tokenizer(path: str, revision: str | None) -> str | None:
    """The revision of a tokenizer (a folder or a hub id) that may be loaded: of a hub id the commit that was
    checked, as its author may change a branch meanwhile. Raises ModelError where its files name others that
    transformers would open."""
    from transformers.utils.hub import extract_commit_hash

    from fedsa_lora.tasks.checkpoint import stored_file

    for name in (_CONFIG, _TOKENIZER, _SPECIAL):
        file = stored_file(path, name, revision, fetch=True)
        if file is not None:
            revision = extract_commit_hash(str(file), None) or revision
        if named := _outside(name, _read(file)):
            raise ModelError(
                f"{path}: its {name} names files outside its folder ({', '.join(named)}): remove that "
                "there, or choose another tokenizer",
                sent="the tokenizer's config names files outside its folder",
                key="model.tokenizer",
            )
    return revision


def _outside(name: str, config: Mapping[str, Any]) -> list[str]:
    """The keys of a file of a tokenizer by which files outside its folder, or unchecked ones, are read."""
    named = _of_versions(config)
    named += [key for key in ("model_type", "tokenizer_class") if _says(config, key, _OF_FOLDERS)]
    if name == _TOKENIZER:
        named += [key for key in names_files(config) if key not in _REPLACED]
    elif name == _SPECIAL:  # its values are taken after transformers has put the folder's own files in
        named += names_files(config)
    return named


def names_files(config: Mapping[str, Any]) -> list[str]:
    """The keys of a tokenizer's config whose value it would open, wherever that lies."""
    found = [key for key, value in config.items() if _VOCABULARY.fullmatch(key) and isinstance(value, str)]
    found += [key for key, value in config.items() if _PLACE.fullmatch(key) and _holds_text(value)]
    return [key for key in found if key not in _VERSIONS]


def _of_versions(config: Mapping[str, Any]) -> list[str]:
    """The keys of lists of files whose values are not all plain names."""
    return [key for key in _VERSIONS if key in config and not _are_plain_names(config[key])]


def _are_plain_names(value: Any) -> bool:
    if not isinstance(value, list):
        return value is None
    return all(isinstance(name, str) and _WORD.fullmatch(name) and ".." not in name for name in value)


def _says(config: Mapping[str, Any], key: str, words: Sequence[str]) -> bool:
    """True where a config has one of these words under a key, at any depth."""
    inner = [value for value in config.values() if isinstance(value, Mapping)]
    return config.get(key) in words or any(_says(value, key, words) for value in inner)


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_text(item) for item in value.values())
    if isinstance(value, list):
        return any(_holds_text(item) for item in value)
    return isinstance(value, str)


def _read(file: Path | None) -> Mapping[str, Any]:
    """The JSON object in a file, as transformers reads it. Raises OSError and ValueError as that does, and
    ModelError for another JSON value."""
    if file is None:
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ModelError(
            f"{file} holds no JSON object: it is truncated or corrupted; copy it again",
            sent="a config of the model or its tokenizer is truncated or corrupted",
            key="model.path",
        )
    return content

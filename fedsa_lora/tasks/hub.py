"""Ids of the hub: the only names that reach libraries which would open paths and URLs as well."""

from __future__ import annotations

import re

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)


def is_hub_id(name: str) -> bool:
    """``name`` or ``owner/name``: neither a path, nor a URL, a glob or a chain such as ``zip://a::b``."""
    return _ID.fullmatch(name) is not None and ".." not in name


def is_revision(name: str) -> bool:
    """A branch, tag or commit, such as ``main`` or ``refs/pr/1``, that leaves no folder of a cache."""
    return _REVISION.fullmatch(name) is not None and ".." not in name

"""Signatures in the site's reference of functions that take the arguments of another, which are known only
where the code is run: griffe reads it."""

from __future__ import annotations

import re
from typing import Any

import griffe


class WithArguments(griffe.Extension):
    """Gives a function under ``@_with_arguments(of)`` the parameters of ``of``."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        for decorator in func.decorators:
            found = re.fullmatch(r"_with_arguments\((\w+)\)", str(decorator.value))
            if found and func.parent is not None:
                func.parameters = func.parent.members[found[1]].parameters

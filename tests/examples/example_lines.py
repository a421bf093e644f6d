"""Length of an example: the lines that a user writes, without imports, docstrings, comments and blanks."""

import ast
from pathlib import Path


def lines_written(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for part in [node.body[0]] if documented else []:
            left_out |= set(range(part.lineno, part.end_lineno + 1))
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    written = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in left_out]
    return len([line for line in written if line and not line.startswith("#")])

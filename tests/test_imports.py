"""Who may know whom: imports point one way, and each library is known in one place."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import fedsa_lora
import strategies

ROOT = Path(fedsa_lora.__file__).parent.parent
PACKAGES = [ROOT / "fedsa_lora", ROOT / "strategies"]
FILES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

# Rooms in which a run is started, recorded and shown: what trains and travels knows none of them.
_LATER = [f"fedsa_lora.{room}" for room in ("runs", "launch", "report", "analysis", "server", "config")]

# What the files below a folder must not import, be it at the top or within a function.
FORBIDDEN = {
    "fedsa_lora/exchange": [
        "torch", "peft", "transformers", "flwr", "flwr_datasets", "datasets", "strategies",
        "fedsa_lora.learning", "fedsa_lora.tasks", "fedsa_lora.client", *_LATER,
    ],
    "fedsa_lora/learning": [
        "flwr", "strategies", "fedsa_lora.client", "fedsa_lora.store", "fedsa_lora.clip", *_LATER,
    ],
    "fedsa_lora/tasks": [
        "flwr", "strategies", "fedsa_lora.client", "fedsa_lora.learning", "fedsa_lora.clip", *_LATER,
    ],
    "fedsa_lora/clip": [
        "flwr", "ray", "hydra", "strategies", "fedsa_lora.client", "fedsa_lora.store", *_LATER[:-1],
        "fedsa_lora.config.compose",
    ],
    "fedsa_lora/client": ["strategies", "hydra", *_LATER],
    "strategies": [
        "torch", "peft", "transformers", "fedsa_lora.learning", "fedsa_lora.tasks", "fedsa_lora.client",
        *_LATER,
    ],
    "fedsa_lora/client/model.py": ["flwr"],
    "fedsa_lora/client/round.py": ["torch", "flwr"],
    "fedsa_lora/store.py": ["torch", "flwr", "fedsa_lora.learning", "fedsa_lora.tasks", *_LATER],
    "fedsa_lora/telemetry": ["torch", "strategies", "fedsa_lora.client", *_LATER],
    "fedsa_lora/config": ["fedsa_lora.client", *_LATER[:-1]],
    "fedsa_lora/report": ["torch", "fedsa_lora.analysis", "fedsa_lora.client", "fedsa_lora.server", "hydra"],
    "fedsa_lora/deployment": ["fedsa_lora.runs", "fedsa_lora.report", "fedsa_lora.analysis", "strategies"],
}  # fmt: skip
ONLY_IN = {
    "hydra": ["fedsa_lora/config/compose.py"],
    "omegaconf": ["fedsa_lora/config/compose.py"],
    "pandas": ["fedsa_lora/analysis/frames.py"],
    "fedsa_lora.commands": [
        "fedsa_lora/cli.py",
        *(
            f"fedsa_lora/commands/{family}.py"
            for family in ("comparisons", "completion", "configs", "imports", "machines", "results", "runs")
        ),
    ],
    "peft": [
        "fedsa_lora/clip/adapter.py",
        *(f"fedsa_lora/learning/{name}.py" for name in ("adapters", "given", "lora", "stock", "targets")),
    ],
}
# What makes up an axis: its own files, and the names by which others would know it besides by an import.
AXES = {
    "unlearning": (
        {
            "fedsa_lora.phases", "fedsa_lora.learning.unlearning", "fedsa_lora.learning.unlearners",
            "fedsa_lora.learning.forgetting", "strategies.unlearning", "fedsa_lora.tasks.tofu",
            "fedsa_lora.analysis.unlearning", "fedsa_lora.analysis.forgotten",
            "fedsa_lora.analysis.relearning", "fedsa_lora.report.forgotten",
        },
        {"unlearning", "UNLEARNING"},
    ),
    "split learning": (
        {
            "fedsa_lora.learning.cut", "fedsa_lora.client.cut", "fedsa_lora.client.cut_bench",
            "fedsa_lora.client.session", "fedsa_lora.client.exchanges", "fedsa_lora.exchange.step",
            "fedsa_lora.server.trunk", "fedsa_lora.runs.trunk", "strategies.cut",
        },
        {"cut", "trunk", "step_bytes"},
    ),
    "clusters": ({"strategies.plans.grouping", "strategies.clustered"}, {"clusters"}),
    "bounds": ({"strategies.round.bounds"}, {"bounds"}),
}  # fmt: skip
MOST_BESIDE = 7  # files that an axis may need beside its own


@cache
def imported(path: Path) -> set[str]:
    """The full dotted names that a file imports, with those that it imports from a module."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def names(path: Path, module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in imported(path))


@pytest.mark.parametrize(
    ("place", "module"), [(place, module) for place, found in FORBIDDEN.items() for module in found]
)
def test_no_file_imports_against_the_direction(place, module):
    files = [path for path in FILES if path.relative_to(ROOT).is_relative_to(place)]
    assert files
    assert [str(path.relative_to(ROOT)) for path in files if names(path, module)] == []


@pytest.mark.parametrize(("module", "places"), ONLY_IN.items())
def test_a_library_is_known_in_one_place(module, places):
    assert [str(path.relative_to(ROOT)) for path in FILES if names(path, module)] == places


def known(path: Path) -> set[str]:
    """The attributes, keywords, constants and texts by which a file knows a thing."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword):
            found.add(str(node.arg))
        elif isinstance(node, ast.Name) and node.id.isupper():
            found.add(node.id)
        elif isinstance(node, ast.Constant):
            found.add(str(node.value))
    return found


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_is_known_by_at_most_seven_files_beside_its_own(axis):
    own, words = AXES[axis]
    beside = []
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        is_own = any(f"{module}.".startswith(f"{name}.") for name in own)
        if module == "fedsa_lora.foreign":  # a table of the options of other programs
            continue
        if not is_own and (words & known(path) or any(names(path, name) for name in own)):
            beside.append(module)
    assert beside, "the settings of a run know every axis"
    assert len(beside) <= MOST_BESIDE, "\n".join(beside)


def test_learning_takes_of_exchange_only_the_array_types():
    for path in (ROOT / "fedsa_lora" / "learning").glob("*.py"):
        exchange = {name for name in imported(path) if name.startswith("fedsa_lora.exchange")}
        assert all(name.startswith("fedsa_lora.exchange.arrays") for name in exchange), path


def test_no_file_is_named_for_nothing_in_particular():
    assert [str(path) for path in FILES if VAGUE & set(path.relative_to(ROOT).with_suffix("").parts)] == []


def test_exchange_and_store_load_without_torch_and_flower():
    code = (
        "import sys, fedsa_lora.store, fedsa_lora.exchange.wire, fedsa_lora.exchange.split\n"
        "import fedsa_lora.exchange.witness\n"
        "print(sorted({'torch', 'flwr', 'peft', 'transformers', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_strategies_is_ours_and_not_the_unrelated_package_of_the_index():
    assert Path(strategies.__file__).parent == ROOT / "strategies"
    assert strategies.FedSA.__module__ == "strategies.fedsa"


def test_the_check_itself_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "fedsa_lora" / "exchange"
    folder.mkdir(parents=True)

    def file(line: str) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.py"
        path.write_text(line + "\n")
        return path

    for line in (
        "import torch",
        "import numpy, torch.nn as nn",
        "from torch import nn",
        "def late():\n    from torch.nn import Linear",
        "if True:\n    import torch",
    ):
        assert names(file(line), "torch"), line
    for line in (
        "from fedsa_lora import learning",
        "from ..learning import adapters",
        "from .. import learning",
    ):
        assert names(file(line), "fedsa_lora.learning"), line
    assert not names(file("import torchvision"), "torch")

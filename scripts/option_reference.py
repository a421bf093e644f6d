"""The reference of options as a page in Markdown, made from the typed config and the files of ``conf``.

``scripts/site_hooks.py`` adds it to the site. By itself: ``python scripts/option_reference.py > options.md``
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from flwr.server.strategy import Strategy

from fedsa_lora.binding import TARGET, arguments_of
from fedsa_lora.config.options import CONF, Options, about, content_of, defaults, groups
from fedsa_lora.group import held, hints_of, ranges
from fedsa_lora.settings import RunConfig
from strategies.rules.inner import BUILT

PARTITIONER = "partitioner"  # the key of a file of conf/partition that names a class
SUPPLIED = {  # by the run itself, so no keys of a config
    "task": ("model", "partition", "seed", "attack"),
    "split": ("head",),
    "strategy": BUILT,
    "partition": ("num_partitions", "seed"),
}
SETTABLE = (bool, int, float, str, type(None), Strategy)  # arguments of other projects' classes
INTRODUCTION = """\
# Options

Every key of a run's config and every choice of its groups, generated from the code that reads them.

- `fedsa-lora run codec=int8` chooses a file of a group, here `conf/codec/int8.yaml`;
  `fedsa-lora run train.lr=2e-3` sets one key.
- The default of a key is its value in a run that chooses nothing of the group. Where choices name classes, it
  is the default of the class, and the file of a choice may set another: `fedsa-lora run --dry-run` shows what
  holds.
- `fedsa-lora list GROUP` prints the choices of a group, with those of your own folder `conf`.
"""


class Key(NamedTuple):
    """A row of a table. Equal rows of several choices are one row."""

    name: str
    type: str
    default: str
    range: str
    meaning: str


@dataclass(frozen=True)
class GroupPage:
    """A group of the config: its choices, and the class that ``RunConfig`` declares for it (None: its files
    set keys of other groups)."""

    name: str
    kind: type | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    default: str | None = None

    def classes(self) -> dict[str, type]:
        """The class with the keys of each choice that has any; "" stands for a group without files."""
        named = {}
        for choice, path in self.files.items():
            if target := target_of(path):
                module, _, name = target.rpartition(".")
                named[choice] = getattr(importlib.import_module(module), name)
        if named or self.kind is None:
            return named
        return {choice: self.kind for choice in self.files or [""] if choice != "none"}

    def keys(self) -> dict[Key, list[str]]:
        """The keys, each with the choices that have it."""
        found: dict[Key, list[str]] = {}
        classes = self.classes()
        for choice, kind in classes.items():
            of_kind = [self.files[name] for name, other in classes.items() if name and other is kind]
            for key in self._keys_of(kind, of_kind):
                found.setdefault(key, []).append(choice)
        return found

    def _keys_of(self, kind: type, files: list[Path]) -> Iterator[Key]:
        place = f"federation.{PARTITIONER}" if self.name == "partition" else self.name
        of_default = {}
        if kind is self.kind and self.default is not None:
            of_default = content_of(self.files[self.default])
        for name, hint, default in settings_of(kind):
            if name not in SUPPLIED.get(self.name, ()):
                value = of_default.get(name, default)
                bounds = str(ranges(kind).get(name, "")) if is_dataclass(kind) else ""
                meaning = meaning_of(name, kind, files, self._others)
                yield Key(f"{place}.{name}", in_words(hint), as_yaml(value), bounds, meaning)

    @property
    def _others(self) -> list[Path]:
        """All files with comments beside keys, that of the default first."""
        if self.name == "run":  # the one group whose keys are in the file that lists the groups
            return [CONF / "run.yaml"]
        first = [self.files[self.default]] if self.default else []
        return [*first, *self.files.values()]

    def lines(self) -> Iterator[str]:
        """The section of the group."""
        yield from ("", f"## {self.name}", "")
        if self.files:
            chosen = f"`{self.name}={self.default}`" if self.default else "none"
            yield from (f"Default: {chosen}.", "", "| choice | meaning |", "|---|---|")
            yield from (f"| `{choice}` | {cell(about(path))} |" for choice, path in self.files.items())
        shared: dict[tuple[str, ...], list[Key]] = {}
        for key, choices in self.keys().items():
            shared.setdefault(tuple(choices), []).append(key)
        for choices, keys in sorted(shared.items(), key=lambda entry: -len(entry[0])):
            if len(choices) < len(self.classes()):
                yield from ("", f"With {', '.join(f'`{choice}`' for choice in choices)}:")
            yield from table(keys)


def page() -> str:
    """The whole page."""
    whole = ["", "## Keys of the whole run", *table(keys_of_the_run())]
    return INTRODUCTION + "\n".join([*whole, *(line for group in all_groups() for line in group.lines())])


def keys_of_the_run() -> list[Key]:
    """The keys that are in no group."""
    values = content_of(CONF / "run.yaml")
    plain = [(name, hint) for name, hint in hints_of(RunConfig).items() if held(hint) in (str, int)]
    return [
        Key(
            name, in_words(hint), as_yaml(values[name]), str(ranges(RunConfig).get(name, "")),
            meaning_of(name, RunConfig, [CONF / "run.yaml"]),
        )
        for name, hint in plain
    ]  # fmt: skip


def all_groups() -> Iterator[GroupPage]:
    """The groups of ``RunConfig`` in its order, then those whose files set keys of these."""
    kinds = {name: held(hint) for name, hint in hints_of(RunConfig).items()}
    ours = [name for name, kind in kinds.items() if name in groups() or is_dataclass(kind)]
    options, chosen = Options(), defaults()
    for name in [*ours, *(name for name in groups() if name not in ours)]:
        yield GroupPage(name, kinds.get(name), options.of(name), chosen.get(name))


def settings_of(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default (MISSING: none) of what a config sets of a class."""
    if is_dataclass(kind):
        for known in dataclasses.fields(kind):
            made = known.default_factory() if known.default_factory is not MISSING else known.default
            yield known.name, hints_of(kind)[known.name], made
        return
    known = {}  # of all constructors, as some hand their arguments on
    for above in reversed(kind.__mro__):
        known |= inspect.signature(above.__init__).parameters
    for name, hint in arguments_of(kind).items():
        if hint is not None and set(alternatives(hint)) <= set(SETTABLE):
            default = known[name].default
            yield name, hint, MISSING if default is inspect.Parameter.empty else default


def target_of(path: Path) -> str | None:
    """The class that a file names, itself or by the file of another group that it takes."""
    content = content_of(path)
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry.startswith("/"):
            return target_of(CONF / f"{entry.removesuffix('@_here_')[1:]}.yaml")
    named: str | None = content.get(TARGET) or content.get(PARTITIONER, {}).get(TARGET)
    return named


def meaning_of(name: str, kind: type, files: Sequence[Path] = (), others: Sequence[Path] = ()) -> str:
    """A line on a key: the sentence of a docstring that opens with it, the comment beside it in a config
    file of the class, any sentence with it, or the comment in another file; "" where there is none."""
    documented = [inspect.getdoc(above) or "" for above in kind.__mro__[:-1]]
    keys = [known for known, _, _ in settings_of(kind)]
    sentences = [sentence for text in documented for sentence in sentences_of(text, keys)]
    found = [sentence for sentence in sentences if sentence.startswith(f"``{name}``")]
    found += [described for text in documented for described in parameter_of(text, name)]
    found += beside(name, files)
    found += [sentence for sentence in sentences if f"``{name}``" in sentence]
    found += beside(name, others)
    return next(iter(found), "").removeprefix(f"``{name}``: ")


def beside(name: str, files: Iterable[Path]) -> list[str]:
    """The comments on the line of a key in config files."""
    line = re.compile(rf"^ *{name}:.*?  # (.+)$", re.MULTILINE)
    texts = (path.read_text(encoding="utf-8") for path in files)
    return [found[1] for text in texts if (found := line.search(text))]


def sentences_of(text: str, keys: Sequence[str] = ()) -> list[str]:
    """The sentences of a docstring's paragraphs, and the parts of sentences that open with a key."""
    end = r"(?:(?<=\.)|(?<=\.\)))\s+(?=[A-Z`])"
    if keys:
        end += rf"|;\s+(?=``(?:{'|'.join(keys)})``)"
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return [line for part in paragraphs for line in re.split(end, part)]


def parameter_of(text: str, name: str) -> list[str]:
    """The first sentence of a parameter's description in numpy's style."""
    found = re.search(rf"^( *){name} ?:.*\n((?:\1 +.*\n?)+)", text, re.MULTILINE)
    return sentences_of(found[2])[:1] if found else []


def in_words(hint: Any) -> str:
    """A type as a reader of a config has it."""
    arguments, origin = get_args(hint), get_origin(hint)
    if origin is Annotated:
        return in_words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(option) for option in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"list of {in_words(arguments[0])}"
    if origin is dict:
        return f"mapping of {in_words(arguments[0])} to {in_words(arguments[1])}"
    return {type(None): "null", Any: "any"}.get(hint) or hint.__name__


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def as_yaml(value: Any) -> str:
    """A default as a config has it."""
    return "must be given" if value is MISSING else f"`{json.dumps(value, ensure_ascii=False)}`"


def table(keys: list[Key]) -> Iterator[str]:
    """The lines of a table of keys."""
    yield from ("", "| key | type | default | range | meaning |", "|---|---|---|---|---|")
    for key in keys:
        yield f"| `{key.name}` | {cell(key.type)} | {key.default} | {key.range} | {cell(key.meaning)} |"


def cell(text: str) -> str:
    """A text in a table: code in Markdown's quotes, and no sign that ends a cell or opens a tag."""
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page())

"""What a client says of its failures: nothing of its data, whatever fails, and all of it in its own log."""

import ast
import base64
import json
import logging
import random
import shlex
import string
from pathlib import Path
from urllib.parse import quote

import pytest
from flwr.app import Context, Message
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.common import EvaluateIns, FitIns, GetPropertiesIns, RecordDict, ndarrays_to_parameters
from flwr.common.serde import message_to_proto
from flwr.compat.common import recorddict_compat as compat
from test_client import Desk

import fedsa_lora
from fedsa_lora import client_app, errors
from fedsa_lora.client.egress import discreet, told
from fedsa_lora.errors import DataError, FedSAError, StoreError
from fedsa_lora.exchange import wire
from fedsa_lora.store import DirectoryStore
from fedsa_lora.tasks import text
from fedsa_lora.telemetry.journal import about

PACKAGE = Path(fedsa_lora.__file__).parent
WINDOW = 8  # characters of a canary that are already too many
KINDS = ("get_properties", "train", "evaluate")
ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FedSAError)
}
OWN = ["experiment=smoke", "federation=deployment", "task=text", "partition=own"]


class Canaries:
    """Random words that stand in the cells and the column names of a file, and are looked for."""

    def __init__(self, seed: object) -> None:
        self._random, self.words = random.Random(str(seed)), []

    def __call__(self, letters: str = string.ascii_letters + string.digits) -> str:
        self.words.append("".join(self._random.choices(letters, k=14)))
        return self.words[-1]

    def number(self) -> str:
        return self(string.digits[1:])

    def found(self, content: bytes) -> list[str]:
        """The parts of words that stand in bytes as they are, escaped, in hex or in base64."""
        text = content.decode("latin-1")
        plain = [part for word in self.words for part in parts_of(word, WINDOW)]
        coded = [part for word in self.words for part in parts_of(word, WINDOW + 3)]
        found = [part for part in plain if any(form in text for form in forms(part))]
        return found + [part for part in coded if any(form in text for form in in_base64(part))]


def parts_of(word: str, length: int) -> list[str]:
    return [word[at : at + length] for at in range(len(word) - length + 1)]


def in_base64(part: str) -> list[str]:
    """A text in base64, at any of three offsets, without the ends that depend on what is beside it."""
    coders = (base64.b64encode, base64.urlsafe_b64encode)
    padded = [(bytes(offset) + part.encode(), offset) for offset in range(3)]
    return [coder(data).decode()[4 if offset else 0 : -4] for coder in coders for data, offset in padded]


def forms(part: str) -> list[str]:
    """A text in the other forms in which it could travel."""
    data = part.encode()
    escaped = "".join(f"\\x{byte:02x}" for byte in data), "".join(f"\\u{ord(letter):04x}" for letter in part)
    return [data.decode("latin-1"), data.hex(), data.hex().upper(), quote(part), *escaped]


@pytest.mark.parametrize(
    "write",
    [
        str.encode,
        lambda word: json.dumps({"error": f"unknown label {word!r}"}).encode(),
        lambda word: base64.b64encode(f"{word}, row 1".encode()),
        lambda word: base64.b64encode(f"a label {word}".encode()),
        lambda word: base64.b64encode(f"labels {word}".encode()),
        lambda word: word.encode().hex().encode(),
        lambda word: word[3:-1].encode(),
    ],
)
def test_the_search_finds_a_word_in_every_form_and_none_where_there_is_none(write):
    canaries = Canaries("search")
    assert canaries.found(write(canaries()))
    assert not canaries.found(write(Canaries("another")()))


def opened(reply: Message) -> Message:
    """The reply with the text of its header, which whoever gets it can inflate."""
    for entries in reply.content.config_records.values() if reply.has_content() else ():
        if isinstance(header := entries.get(wire.KEY), bytes):
            entries[wire.KEY] = wire.inflated(header)
    return reply


class Machine:
    """A deployed node with the real ClientApp, and messages as a server would send them."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        client_app._resident.cache_clear()
        arrays, config = Desk(folder / "server", *overrides).ask("0", 1, run="abcd")
        parameters = ndarrays_to_parameters(arrays)
        self.content = {
            "get_properties": compat.getpropertiesins_to_recorddict(GetPropertiesIns({})),
            "train": compat.fitins_to_recorddict(FitIns(parameters, config), keep_input=True),
            "evaluate": compat.evaluateins_to_recorddict(EvaluateIns(parameters, config), keep_input=True),
        }

    def ask(self, kind: str, words: list[str], data: Path | None, **more: object) -> Message:
        node = {"client-id": "0", "store": str(self.folder / "kept"), "paths": str(self.folder), **more}
        if data is not None:
            node["data.path"] = str(data)
        context = Context(1, 7, node, RecordDict(), {"overrides": shlex.join(words)})
        return opened(client_app.app(Message(self.content[kind], dst_node_id=7, message_type=kind), context))

    def logs(self) -> str:
        return "".join(path.read_text() for path in (self.folder / "kept").rglob("log.jsonl"))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def table(canaries: Canaries, labels=("no", "yes"), rows: int = 40) -> list[list[str]]:
    """Rows with a canary in every cell that is free, and in the name of every column that is."""
    header = ["text", "label", canaries(), canaries()]
    return [
        header,
        *([canaries(), labels[i % len(labels)], canaries(), canaries.number()] for i in range(rows)),
    ]


def as_csv(rows: list[list[str]]) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


def labelled(canaries: Canaries, *labels: str) -> str:
    """A CSV file in which one row has each of these labels."""
    rows = table(canaries)
    for row, label in zip(rows[5:], labels, strict=False):
        row[1] = label
    return as_csv(rows)


def as_jsonl(canaries: Canaries, **values: object) -> str:
    rows = [{"text": canaries(), "label": "yes", canaries(): canaries.number()} for _ in range(6)]
    return "".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | values])


def without(column: str, canaries: Canaries) -> str:
    rows = table(canaries)
    rows[0][rows[0].index(column)] = canaries()
    return as_csv(rows)


def emptied(canaries: Canaries, cell: int) -> str:
    rows = table(canaries)
    rows[7][cell] = ""
    return as_csv(rows)


# By what is wrong: the file and what it holds, made of canaries; what else the run asks for; what is sent.
FILES = {
    "an unknown label": (
        "d.csv",
        lambda c: labelled(c, c()),
        [],
        "none of the classes of the run (task.class_names, 1 rows)",
    ),
    "unknown labels that are numbers": (
        "d.csv",
        lambda c: labelled(c, *(c.number() for _ in range(9))),
        [],
        "task.class_names, 9 rows",
    ),
    "the text as label": (
        "d.csv",
        lambda c: as_csv(table(c)),
        ["task.label=text"],
        "task.class_names, 40 rows",
    ),
    "a label that is not there": ("d.csv", lambda c: as_csv(table(c)), ["task.label=nope"], "DataError"),
    "a column that is not there": (
        "d.csv",
        lambda c: as_csv(table(c)),
        ["task.text=nope"],
        "lack a column that the run names",
    ),
    "a filter that fits no row": (
        "d.csv",
        lambda c: as_csv(table(c)),
        ["task.where={text: nope}"],
        "(task.where)",
    ),
    "a filter on a column that is not there": (
        "d.csv",
        lambda c: as_csv(table(c)),
        ["task.where={nope: 1}"],
        "lack a column",
    ),
    "a group that is not there": ("d.csv", lambda c: as_csv(table(c)), ["task.group=nope"], "lack a column"),
    "other columns": ("d.csv", lambda c: without("label", c), [], "lack a column that the run names"),
    "a column twice": ("d.csv", lambda c: as_csv([[*row, row[0]] for row in table(c)]), [], "a column twice"),
    "a row without a text": ("d.csv", lambda c: emptied(c, 0), [], "rows have no text (1 rows)"),
    "a row without a label": (
        "d.csv",
        lambda c: emptied(c, 1),
        [],
        "rows have no label (task.label, 1 rows)",
    ),
    "a line with too many fields": (
        "d.csv",
        lambda c: as_csv([*table(c), [c()] * 7]),
        [],
        "more or fewer fields",
    ),
    "an open quotation mark": (
        "d.csv",
        lambda c: as_csv([*table(c), [f'"{c()}\n{c()}"', "no", c(), c()], [f'"{c()}', "no", c(), c()]]),
        [],
        "a quotation mark",
    ),
    "other characters": (
        "d.csv",
        lambda c: as_csv(table(c)).encode() + f"{c()} \xf6,no,a,b\n".encode("cp1252"),
        [],
        "not UTF-8 text",
    ),
    "a NUL": ("d.csv", lambda c: as_csv(table(c)) + f"{c()}\0,no,a,b\n", [], "NUL bytes"),
    "an empty file": ("d.csv", lambda c: "", [], "is empty"),
    "a pointer of Git LFS": (
        "d.csv",
        lambda c: f"version https://git-lfs.github.com/spec/v1\noid sha256:{c()}\n",
        [],
        "Git LFS",
    ),
    "not JSON": ("d.jsonl", lambda c: as_jsonl(c) + f'{{"text": "{c()}"\n', [], "not JSON"),
    "not JSON at all": ("d.json", lambda c: f"{c()} {c()}", [], "not JSON"),
    "whole columns": ("d.json", lambda c: f'{{"{c()}": [1, 2]}}', [], "whole columns"),
    "lists": ("d.jsonl", lambda c: f'["{c()}"]', [], "not a JSON object"),
    "half a character": (
        "d.jsonl",
        lambda c: as_jsonl(c) + f'{{"text": "{c()} \\ud83d", "label": "yes"}}\n',
        [],
        "broken Unicode",
    ),
    "half a character in a name": (
        "d.jsonl",
        lambda c: as_jsonl(c) + f'{{"{c()} \\ud83d": "yes"}}\n',
        [],
        "broken Unicode",
    ),
    "a long number": (
        "d.jsonl",
        lambda c: as_jsonl(c) + f'{{"text": "{c()}", "label": {"9" * 5000}}}\n',
        [],
        "JSON",
    ),
    "mixed kinds": ("d.jsonl", lambda c: as_jsonl(c, text=1), [], "several kinds"),
    "a nested text": (
        "d.jsonl",
        lambda c: f'{{"text": {{"{c()}": "{c()}"}}, "label": "yes"}}\n',
        [],
        "holds none",
    ),
    "a nested label": (
        "d.jsonl",
        lambda c: f'{{"text": "{c()}", "label": {{"{c()}": "{c()}"}}}}\n',
        [],
        "one value per row",
    ),
    "no parquet": ("d.parquet", lambda c: c() * 20, [], "cannot be read"),
    "a packed file": ("d.csv.gz", lambda c: c(), [], "format that is not supported"),
    "another split": ("d", lambda c: {f"{c()}.csv": as_csv(table(c))}, [], "no such split"),
    "two files of a split": (
        "d",
        lambda c: {"train.csv": as_csv(table(c)), f"train-{c()}.csv": c()},
        [],
        "more than one file",
    ),
    "a missing part": ("d", lambda c: {f"train-{c()}-0-of-2.csv": as_csv(table(c))}, [], "is missing"),
    "a part without the columns": (
        "d",
        lambda c: {"train-0-of-2.csv": as_csv(table(c)), "train-1-of-2.csv": without("text", c)},
        [],
        "lack a column",
    ),
    "no data": (None, None, [], "(partition)"),
}


def write(path: Path, content: object) -> None:
    if isinstance(content, dict):
        path.mkdir()
        for name, inner in content.items():
            write(path / name, inner)
    else:
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


@pytest.mark.sampled(3)
@pytest.mark.case(31)
@pytest.mark.parametrize("fault", FILES)
def test_no_part_of_a_cell_or_a_column_leaves_a_client_in_an_error(machine, caplog, fault):
    name, make, words, said = FILES[fault]
    canaries, data = Canaries(fault), None
    if name is not None:
        data = machine.folder / f"{canaries()}-{name}"
        write(data, make(canaries))
    for kind in KINDS:
        with caplog.at_level(logging.ERROR, "flwr"):
            reply = machine.ask(kind, [*OWN, "task.class_names=[no,yes]", *words], data)
        sent = message_to_proto(reply).SerializeToString()
        assert canaries.found(sent) == []
        assert str(machine.folder).encode() not in sent
        assert said in sent.decode("latin-1").replace("\\", "") or kind == "get_properties"
    assert reply.has_error() or "the full text is in the log of this client (round 1, evaluate)" in str(reply)
    if canaries.words:
        assert str(data) in machine.logs() + caplog.text, "the client's own log names the file"


@pytest.mark.case(31)
def test_a_sound_answer_holds_no_part_of_the_data_either(machine):
    canaries = Canaries("sound")
    labels = [canaries(), canaries()]
    data = machine.folder / "sound.csv"
    write(data, as_csv(table(canaries, labels)))
    for kind in KINDS:
        reply = machine.ask(kind, [*OWN, f"task.class_names=[{','.join(labels)}]"], data)
        assert reply.has_content()
        assert canaries.found(message_to_proto(reply).SerializeToString()) == []


@pytest.mark.sampled(3)
@pytest.mark.case(31)
@pytest.mark.parametrize(
    "place", ["build_model", "read", "encode", "load_client", "collate", "predict", "evaluate"]
)
@pytest.mark.parametrize("kind", [KeyError, ValueError, DataError])
def test_what_nobody_expected_is_sent_by_its_name_alone(machine, monkeypatch, place, kind):
    canaries = Canaries(f"{place} {kind}")
    word = canaries()

    def broken(*args: object, **kwargs: object) -> None:
        raise kind(f"{word} in {machine.folder}")

    monkeypatch.setattr(text.TextTask, place, broken)
    data = machine.folder / "sound.csv"
    write(data, as_csv(table(canaries)))
    replies = [machine.ask(kind, [*OWN, "task.class_names=[no,yes]"], data) for kind in ("train", "evaluate")]
    for reply in replies:
        assert canaries.found(message_to_proto(reply).SerializeToString()) == []
    assert any(kind.__name__ in str(reply) for reply in replies)
    assert word in machine.logs() or place == "build_model"


@pytest.mark.case(31)
def test_a_panic_that_is_no_exception_is_an_answer_too_and_the_end_of_the_process_is_none(
    machine, monkeypatch
):
    class PanicException(BaseException):
        """As those of libraries in Rust."""

    data = machine.folder / "sound.csv"
    write(data, as_csv(table(Canaries("panic"))))
    for error, place in ((PanicException, "build_model"), (PanicException, "encode"), (SystemExit, "encode")):
        client_app._resident.cache_clear()

        def broken(*args: object, error: type = error, **kwargs: object) -> None:
            raise error("length 0 at /srv/vocabulary")

        with monkeypatch.context() as patched:
            patched.setattr(text.TextTask, place, broken)
            words = [*OWN, "task.class_names=[no,yes]"]
            if error is SystemExit:
                with pytest.raises(SystemExit):
                    machine.ask("train", words, data)
                continue
            reason = machine.ask("train", words, data).error.reason
        assert reason.startswith("PanicException: an unexpected error; ")


@pytest.mark.case(31)
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["lora.target_modules=[word_embeddings]"], "bert.embeddings.word_embeddings.lora_embedding_A"),
        (["lora=none", "split=full"], "bert.embeddings.word_embeddings.weight"),
        (["lora=none", "split=full"], "bert.embeddings.position_embeddings.weight"),
    ],
)
def test_what_has_a_value_for_each_token_leaves_a_node_only_where_it_says_so(tmp_path, words, name):
    data = tmp_path / "sound.csv"
    write(data, as_csv(table(Canaries("tokens"))))
    machine = Machine(tmp_path, *words)
    run = [*OWN, "task.class_names=[no,yes]", *words]
    refused = machine.ask("train", run, data)
    assert "SplitError: the server asks for" in str(refused.content)
    assert name in str(refused.content)
    reply = machine.ask("train", run, data, **{"share-tokens": True})
    assert '"error":""' in str(reply.content)


def raised() -> list:
    """Every call in the package that makes an error of ours: its place, its class and what it passes on."""
    calls = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        within = {
            inner: function
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for inner in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                named = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if named in ERRORS or named in ("refuse", "raise_faults"):
                    place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                    calls.append(pytest.param(named, node.keywords, within.get(node), id=place))
    return calls


OF_THE_RUN = {"config.py", "validation.py", "binding.py", "outside.py"}  # know the run's config, and no data


@pytest.mark.case(31)
@pytest.mark.parametrize(("kind", "keywords", "function"), raised())
def test_a_sentence_that_is_sent_stands_in_the_source_and_holds_no_value(kind, keywords, function, request):
    parameters = {argument.arg for argument in function.args.kwonlyargs} if function else set()
    for keyword in keywords:
        if keyword.arg not in ("sent", "key"):
            continue
        value = keyword.value
        passed_on = isinstance(value, ast.Name) and value.id == keyword.arg and value.id in parameters
        literal = isinstance(value, ast.Constant) and isinstance(value.value, str)
        of_the_run = keyword.arg == "key" and request.node.callspec.id.partition(":")[0] in OF_THE_RUN
        assert literal or passed_on or of_the_run, ast.unparse(value)


# What is sent whole: its authors must see to it that it quotes messages, tensors and settings alone.
OPEN = {"WireError", "LayoutError", "SplitError", "LeakError", "TrainingError"}


def test_only_errors_that_are_not_about_data_are_sent_whole():
    assert {name for name, kind in ERRORS.items() if kind.is_open} == OPEN
    for path in (PACKAGE / "tasks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Name) or node.id not in OPEN, f"{path}: {node.id} in a task"


@pytest.mark.parametrize("name", sorted(ERRORS.keys() - OPEN))
def test_an_error_says_what_it_is_of_and_no_word_of_its_message(name):
    kind = ERRORS[name]
    canaries = Canaries(name)
    arguments = {"code": 130} if name == "StoppedError" else {}
    error = kind(f"{canaries()} in /srv/{canaries()}: row 3", **arguments)
    assert canaries.found(told(error).encode()) == []
    assert told(error) == f"{name}: {kind.meaning}; the full text is in the log of its node"
    with about(client="7", round=3, phase="fit"):
        log = "the log of this client (round 3, fit)"
        assert told(error) == f"{name}: {kind.meaning}; the full text is in {log}"


@pytest.mark.case(37)
@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_holds_printable_characters_and_line_breaks_only(name):
    arguments = {"code": 130} if name == "StoppedError" else {}
    error = ERRORS[name]("one\n\x1b]0;x\x07two\r\u202ethree", **arguments)
    assert str(error) == "one\n ]0;x two  three"
    assert "\x1b" not in told(error)


def test_what_is_added_to_a_sentence_is_a_key_and_counts():
    error = DataError("row 3: 'x'", sent="rows have no label", key="task.label", rows=3, classes=1200)
    assert error.sendable == "rows have no label (task.label, 3 rows, 1,200 classes)"
    with pytest.raises(TypeError, match="rows is not a whole number"):
        DataError("row 3", sent="rows have no label", rows="patient 7731")
    with pytest.raises(ValueError, match="is not a config key"):
        DataError("row 3", sent="rows have no label", key="patient 7731")


@pytest.mark.case(31)
@pytest.mark.parametrize("error", [ValueError, StoreError])
def test_what_a_client_raises_before_it_has_a_log_is_its_answer_without_its_words(caplog, error):
    def broken(context: Context) -> Client:
        raise error("no room on /var/lib/clients/7/state.bin: make some")

    app = ClientApp(client_fn=broken, mods=[discreet])
    content = compat.getpropertiesins_to_recorddict(GetPropertiesIns({}))
    message = Message(content, dst_node_id=7, message_type="get_properties")
    reply = app(message, Context(1, 7, {}, RecordDict(), {}))
    assert reply.has_error()
    assert reply.error.reason.startswith(f"{error.__name__}: ")
    assert reply.error.reason.endswith("; the full text is in the log of its node")
    assert "no room on /var/lib/clients/7/state.bin" in caplog.text
    assert "state" not in reply.error.reason


@pytest.mark.parametrize("damage", ["unreadable", "no file", "in another place"])
def test_a_store_that_cannot_be_used_is_told_without_its_place(tmp_path, caplog, damage):
    desk = Desk(tmp_path / "run")
    desk.fit("0", 1)
    path = desk.store("0").folder / "round-000001.safetensors"
    if damage == "unreadable":
        path.write_bytes(b"cut off")
    elif damage == "no file":
        path.unlink()
        path.mkdir()
    else:
        desk.store = lambda name: DirectoryStore(tmp_path / "run" / "config.yaml", name, "e")
        (tmp_path / "run" / "config.yaml").touch()
    evaluated = wire.read_header(desk.evaluate("0", 1)[2], wire.UploadHeader)
    for error in (desk.fit("0", 2)[2].error, evaluated.error):
        assert str(tmp_path) not in error
        assert "run" not in error.partition("Error")[2].split()
    assert str(tmp_path) in caplog.text


def test_an_error_of_no_data_is_sent_with_its_remedy():
    assert told(errors.TrainingError("the loss became nan: lower train.lr")).endswith("nan: lower train.lr")

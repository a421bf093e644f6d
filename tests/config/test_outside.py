"""Who starts a run on other people's machines: what their config may not name there, and what is not told."""

import logging
import re
import shlex
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.common import FitIns, GetPropertiesIns, RecordDict, ndarrays_to_parameters
from flwr.compat.common.recorddict_compat import fitins_to_recorddict, getpropertiesins_to_recorddict
from test_client import Desk

from fedsa_lora import client_app
from fedsa_lora.client.record import header_of
from fedsa_lora.config.compose import load, to_yaml
from fedsa_lora.deployment.node_config import Node
from fedsa_lora.deployment.node_store import node_store
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.wire import UploadHeader

SMOKE = ["experiment=smoke"]
SECRET = "root:x:0:0:secret"
ROWS = "text,label\n" + "".join(f"example number {i},{'yes' if i % 2 else 'no'}\n" for i in range(80))
PLACE = re.compile(r"(?<![\w/.:])~?/\w|file:/")  # an absolute path


@pytest.fixture
def machine(tmp_path):
    """A folder that the node config allows, with data in it, and others that it does not."""
    for name in ("allowed", "private", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "allowed" / "rows.csv").write_text(ROWS)
    (tmp_path / "allowed" / "empty").mkdir()
    (tmp_path / "private" / "rows.csv").write_text(f"{SECRET},label\n")
    (tmp_path / "private" / "config.json").write_text("{}")
    (tmp_path / "allowed" / "link.csv").symlink_to(tmp_path / "private" / "rows.csv")
    return tmp_path


@pytest.mark.case(25)
@pytest.mark.case(37)
@pytest.mark.parametrize(
    "words",
    [
        ["task=text", "task.dataset={private}/rows.csv"],
        ["task=text", "task.dataset={allowed}/../private/rows.csv"],
        ["task=text", "task.dataset={allowed}/link.csv"],
        ["task=text", "task.dataset=../private/rows.csv"],
        ["task=text", "task.dataset='~/rows.csv'"],
        ["task=text", "task.dataset='~nobody-of-that-name/rows.csv'"],
        ["task=text", "task.dataset=/etc/passwd", "train.lr=x"],
        ["task=text", "task.dataset=/no/such/file.csv"],
        ["task=text", "task.files={{train: {allowed}/rows.csv, test: {private}/rows.csv}}"],
        ["model.path={private}"],
        ["model.path=pkg://numpy/../../../etc"],
        ["model.path=pkg://numpy//etc"],
        ["model.path=pkg://numpy/{private}"],
        ["model.tokenizer=pkg://numpy/{private}"],
        ["model.tokenizer={private}"],
        ["model.path='~'"],
        ["model.path=hf://owner/name"],
        ["model.path=https://host/owner/name"],
        ["model.path=owner/name/more"],
        ["model.path='./owner'"],
        ["model.path=../private"],
        ["model.path='owner/..'"],
        ["task=text", "task.dataset=file://{private}/rows.csv"],
        ["task=text", "task.dataset=hf://datasets/owner/name/rows.csv"],
        ["task=text", "task.dataset=s3://bucket/rows.csv"],
        ["task=text", "task.dataset='zip://rows.csv::{private}/rows.zip'"],
        ["task=text", "task.dataset='simplecache::file:///etc/passwd'"],
        ["task=text", "task.dataset='rows*.csv'"],
        ["task=text", "task.dataset='{private}/*.csv'"],
        ["task=text", "task.dataset=pkg://numpy/../private"],
        ["task=text", "task.files={{train: 'file://{private}/rows.csv'}}"],
        ["task=text", "task.files={{train: 'rows.csv::x'}}"],
        ["name=${{oc.env:HOME}}"],
        ["train.lr=${{oc.env:HOME}}"],
        ["train.lr=${{ oc.decode:${{oc.env:HOME}} }}"],
        ["hydra.searchpath=[file://{private}]"],
        ["+hydra.searchpath=[file://{private}]"],
        [" hydra.searchpath=[file://{private}]"],
    ],
    ids=" ".join,
)
def test_what_a_stranger_names_of_a_machine_is_refused_before_it_is_read(machine, monkeypatch, words):
    monkeypatch.chdir(machine / "elsewhere")
    known = {name: machine / name for name in ("allowed", "private")}
    words = [word.format(**known) for word in words]
    with pytest.raises(ConfigError, match="is not allowed") as caught:
        load([*SMOKE, *words], folders=[machine / "allowed"])
    assert SECRET not in str(caught.value)
    assert str(Path.home()) not in str(caught.value).replace(f"{machine}", "")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["task=text", "task.dataset={allowed}/rows.csv"],
        ["task=text", "task.files={{train: {allowed}/rows.csv}}"],
        ["name=${{task.dataset}}", "run.dir=/anywhere"],
        ["federation.superlink=hub:1", "federation.root_certificates=/keys/of/who/submits"],
    ],
)
def test_what_a_node_config_allows_and_what_is_no_path_is_taken(machine, words):
    words = [*SMOKE, *(word.format(allowed=machine / "allowed") for word in words)]
    assert load(words, folders=[machine / "allowed"]).resolved == load(words).resolved


@pytest.mark.case(37)
def test_a_link_to_an_allowed_folder_is_as_good_as_the_folder_and_a_home_below_it_is_not(
    machine, monkeypatch
):
    (machine / "elsewhere" / "link").symlink_to(machine / "allowed")
    words = [*SMOKE, "task=text", f"task.dataset={machine}/elsewhere/link/rows.csv"]
    assert load(words, folders=[machine / "allowed"]).task.dataset == f"{machine}/allowed/rows.csv"
    monkeypatch.chdir(machine / "allowed")  # where "~" could be the name of a folder that is allowed
    monkeypatch.setenv("HOME", str(machine / "private"))
    with pytest.raises(ConfigError, match=r"'~/rows\.csv' is not allowed"):
        load([*SMOKE, "task=text", "task.dataset='~/rows.csv'"], folders=[machine / "allowed"])


@pytest.mark.case(37)
@pytest.mark.parametrize("key", ["task.dataset", "model.path", "model.tokenizer"])
@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train.csv", "private/rows.csv"),
        ("data/train.csv", "private/rows.csv"),
        ("data", "private"),
        ("absent.csv", "private/not-there-yet.csv"),
        ("circle", "allowed/set/circle"),
        ("other", "allowed/other"),
    ],
)
def test_a_link_within_an_allowed_folder_leads_nowhere_else(machine, key, link, target):
    (machine / "allowed" / "other" / "deep").mkdir(parents=True)
    (machine / "allowed" / "other" / "deep" / "data").symlink_to(machine / "private")
    place = machine / "allowed" / "set" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(machine / target)
    words = [*SMOKE, "task=text", f"{key}={machine}/allowed/set"]
    with pytest.raises(
        ConfigError, match=r"is not allowed on this machine, as the link '.*' points outside"
    ) as caught:
        load(words, folders=[machine / "allowed"])
    assert SECRET not in str(caught.value)
    assert caught.value.sendable.startswith("its config names data or a model that this node does not allow")


@pytest.mark.case(37)
def test_links_between_allowed_folders_are_followed_and_those_to_a_parent_end(machine):
    folder = machine / "allowed" / "set"
    folder.mkdir()
    (folder / "train.csv").symlink_to(machine / "elsewhere" / "rows.csv")
    (folder / "up").symlink_to(folder)
    (machine / "elsewhere" / "rows.csv").write_text(ROWS)
    allowed = [machine / "allowed" / "set", machine / "elsewhere"]
    words = [*SMOKE, "task=text", f"task.dataset={folder}"]
    assert load(words, folders=allowed).task.dataset == str(folder)


@pytest.mark.case(37)
def test_a_link_that_cannot_be_looked_at_does_not_end_the_search_for_others(machine):
    folder = machine / "allowed" / "set"
    (machine / "allowed" / "closed" / "inner").mkdir(parents=True)
    folder.mkdir()
    (folder / "a").symlink_to(machine / "allowed" / "closed" / "inner")
    (folder / "aa").symlink_to("n" * 300)  # a name that nobody can look at, root included
    (folder / "b").symlink_to(machine / "private")
    (machine / "allowed" / "closed").chmod(0)
    try:
        with pytest.raises(ConfigError, match=r"the link '[^']*/b' points outside"):
            load([*SMOKE, "task=text", f"task.dataset={folder}"], folders=[machine / "allowed"])
    finally:
        (machine / "allowed" / "closed").chmod(0o700)


@pytest.mark.case(37)
@pytest.mark.parametrize(
    "word",
    ['model.config={{a: 1, "{e}": 1}}', "++x{e}=1", 'train.lr="{e}"', "{e}", "task=te{e}xt", 'name="{e}'],
)
def test_who_starts_a_run_cannot_command_the_terminal_of_a_node(machine, caplog, word):
    words = [*SMOKE, shlex.quote(word.format(e="\x1b]0;owned\x07\x1b[2J\u202e"))]
    with caplog.at_level(logging.ERROR, "flwr"):
        reply = asked(machine, words)
    assert "ConfigError" in caplog.text
    assert refusal(reply).isprintable()
    for record in caplog.records:
        assert record.getMessage().replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.case(37)
@pytest.mark.parametrize(
    "value", ["{train: {deeper: /etc/passwd}}", "{train: [/etc/passwd]}", "{train: 3}", "[/etc]"]
)
def test_files_of_another_form_are_faults_and_not_read(value):
    with pytest.raises(ConfigError, match=r"task\.files"):
        load([*SMOKE, "task=text", f"task.files={value}"], folders=())


@pytest.mark.case(37)
@pytest.mark.parametrize(
    "words", [["run.dir='~nobody-of-that-name/x'"], ["task.dataset='~nobody-of-that-name/x'"]]
)
def test_the_home_of_nobody_is_a_fault_of_the_config(words):
    with pytest.raises(ConfigError, match="is in the home folder of an unknown user"):
        load([*SMOKE, *words])


@pytest.mark.case(37)
def test_two_runs_of_one_folder_name_do_not_read_each_others_b(machine):
    desk = Desk(machine / "other")
    for run, place in (("aaaa", "/one/x"), ("bbbb", "/two/x")):
        arrays, config = desk.ask("0", 1, run=run)
        content = fitins_to_recorddict(FitIns(ndarrays_to_parameters(arrays), config), keep_input=True)
        reply = asked(machine, [*SMOKE, f"run.dir={place}"], content=content)
        header = header_of(reply, UploadHeader)
        assert ("its store holds the state of another run" in header.error) == (run == "bbbb")


@pytest.mark.case(25)
def test_without_a_word_of_the_node_config_no_path_is_allowed(machine):
    assert Node.read({"client-id": "7"}).paths == ()
    named = Node.read({"client-id": "7", "paths": f"{machine}/allowed:/b c"}).paths
    assert named == (machine / "allowed", Path("/b c"))
    with pytest.raises(ConfigError, match=r"task\.dataset: .* is not allowed on this machine"):
        load([*SMOKE, "task=text", f"task.dataset={machine}/allowed/rows.csv"], folders=())


@pytest.mark.case(25)
@pytest.mark.parametrize(
    "config",
    ["trust_remote_code: true", "auto_map: {AutoModel: evil--m.M}", "attn_implementation: evil/kernel"],
)
def test_a_model_config_cannot_bring_code(config):
    with pytest.raises(ConfigError, match=r"model\.config names code to be loaded: remove"):
        load([*SMOKE, f"++model.config={{model_type: bert, {config}}}"])


@pytest.mark.case(25)
@pytest.mark.case(37)
@pytest.mark.parametrize("run_dir", ["/etc", "/data/other/..", "'~'", "../../x"])
@pytest.mark.parametrize("store", ["null", "/other/client"])
def test_the_store_is_where_the_node_config_says_whatever_the_run_config_says(tmp_path, run_dir, store):
    config = load([*SMOKE, f"run.dir={run_dir}", f"run.store={store}"])
    kept = node_store(config, Node("7"), tmp_path / "kept")
    assert kept.folder == tmp_path / "kept" / config.run_dir.name / "7"


ODD = ["/", "/..", "/a b", "/x;y", "'/\u202ex'", "/.hidden", "/-rf", f"/{'a' * 129}"]


@pytest.mark.case(37)
@pytest.mark.parametrize("run_dir", ODD)
def test_a_run_whose_folder_has_no_plain_name_is_refused_by_its_submitter_and_every_node(tmp_path, run_dir):
    config = load([*SMOKE, f"run.dir={run_dir}"])
    with pytest.raises(ConfigError, match=r"run\.dir: nodes keep .* is not a valid name: expected"):
        node_store(config, Node("7"), tmp_path / "kept")
    with pytest.raises(ConfigError, match=r"run\.dir: nodes keep .* is not a valid name: expected"):
        load([*SMOKE, "federation=deployment", "federation.superlink=hub:1", f"run.dir={run_dir}"])
    assert not (tmp_path / "kept").exists()


@pytest.mark.case(25)
def test_a_node_without_a_store_of_its_own_answers_nothing(machine):
    reply = asked(machine, SMOKE, node={"store": None})
    assert refusal(reply).startswith("ConfigError: its node config sets no store; the full text is in")


@pytest.mark.case(24)
@pytest.mark.parametrize("client", ["../../x", "/etc/x", "a\0b"])
def test_a_node_that_names_its_client_like_a_path_answers_nothing_and_writes_nothing(machine, caplog, client):
    with caplog.at_level(logging.ERROR, "flwr"):
        reply = asked(machine, SMOKE, node={"client-id": client})
    assert refusal(reply).startswith("ConfigError: its node config cannot be used")
    assert re.search(r"client id .*: expected 1 to 64 letters", caplog.text)
    assert not (machine / "kept").exists()


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"forbid": "B heads"}, "'heads' would keep nothing local"),
        ({"forbid": "B,*.layer.77.*"}, r"'\*.layer.77.\*' matches no tensor of this model"),
        ({"forbids": "B"}, "'forbids' is not one of"),
        ({"paths": "allowed"}, "'allowed' is not an absolute path"),
    ],
)
def test_a_node_of_stock_flower_whose_config_would_keep_nothing_in_answers_nothing_and_trains_nothing(
    machine, caplog, node, said
):
    desk = Desk(machine / "other")
    arrays, config = desk.ask("0", 1, run="abcd")
    content = fitins_to_recorddict(FitIns(ndarrays_to_parameters(arrays), config), keep_input=True)
    with caplog.at_level(logging.ERROR, "flwr"):
        sent = refusal(asked(machine, SMOKE, node=node, content=content))
    assert re.match("ConfigError: (its node config cannot be used|a pattern of its node's forbid)", sent)
    assert re.search(said, caplog.text)
    assert not list(machine.glob("kept/**/round-*"))


def asked(machine, overrides, node=None, content=None, **handed):
    """The answer of the real ClientApp of a deployed node to a message."""
    client_app._resident.cache_clear()
    content = content or getpropertiesins_to_recorddict(GetPropertiesIns({}))
    kinds = {"fitins": "train", "evaluateins": "evaluate", "getpropertiesins": "get_properties"}
    kind = kinds[str(next(iter(content))).partition(".")[0]]
    known = {"client-id": "0", "store": str(machine / "kept"), "paths": str(machine / "allowed")} | (
        node or {}
    )
    context = Context(1, 7, known, RecordDict(), {"overrides": " ".join(overrides), **handed})
    return client_app.app(Message(content, dst_node_id=7, message_type=kind), context)


def refusal(reply):
    """Why a message was not answered, as the server gets to know it."""
    assert reply.has_error()
    return reply.error.reason


def test_a_deployed_client_keeps_its_state_where_its_node_config_says(machine):
    desk = Desk(machine / "other")
    arrays, config = desk.ask("0", 1, run="abcd")
    content = fitins_to_recorddict(FitIns(ndarrays_to_parameters(arrays), config), keep_input=True)
    assert asked(machine, [*SMOKE, "run.store=/proc/nowhere"], content=content).has_content()
    (path,) = (machine / "kept" / "1" / "0").glob("round-*.safetensors")
    assert path.name == "round-000001.safetensors"


@pytest.mark.case(25)
def test_what_a_stranger_has_composed_is_not_taken_for_what_a_simulation_is_handed(machine):
    private = load(["task=text", f"task.dataset={machine / 'allowed' / 'rows.csv'}"])
    composed = to_yaml(private).replace("allowed/rows.csv", "private/rows.csv")
    assert "private/rows.csv" in composed
    desk = Desk(machine / "other")
    arrays, config = desk.ask("0", 1, run="abcd")
    content = fitins_to_recorddict(FitIns(ndarrays_to_parameters(arrays), config), keep_input=True)
    assert asked(machine, SMOKE, content=content, composed=composed).has_content()


@pytest.mark.case(25)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=text", "task.dataset={allowed}/absent.csv"], "no data at the place that the run names"),
        (["task=text", "task.dataset={private}/rows.csv"], "ConfigError: "),
        (["model.path={allowed}/empty", "model.pretrained=true"], "cannot be loaded here (model.path)"),
    ],
)
def test_what_a_machine_says_of_its_failures_has_no_place_in_it_and_its_log_has_all(
    machine, caplog, words, said
):
    words = [word.format(allowed=machine / "allowed", private=machine / "private") for word in words]
    with caplog.at_level(logging.ERROR, "flwr"):
        told = refusal(asked(machine, [*SMOKE, *words]))
    assert said in told
    assert not PLACE.search(told), told
    assert str(machine) in caplog.text

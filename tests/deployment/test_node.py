"""What a node says of itself, data of its own, certificates and keys, and how a SuperLink is reached."""

import shutil
import ssl
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from datasets import Dataset
from flwr.common.config import parse_config_args
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

from fedsa_lora.cli import main
from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.deployment.certificates import make_certificates
from fedsa_lora.deployment.node import run_node
from fedsa_lora.deployment.node_config import Node
from fedsa_lora.errors import ConfigError, DataError, RunError
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.deployed import RunningSuperLink
from fedsa_lora.launch.federate import failure
from fedsa_lora.launch.flower_log import COMPLETE, rounds_begun
from fedsa_lora.launch.flower_run import Outcome
from fedsa_lora.launch.plan import make_plan
from fedsa_lora.launch.superlink import free_port
from fedsa_lora.tasks.defaults import TaskDefaults
from fedsa_lora.tasks.sources import read_split

DEPLOYED = ["experiment=smoke", "federation=deployment", "federation.superlink=10.0.0.1:8000"]
OWN = [
    *DEPLOYED, "task=text", "partition=own", "task.class_names=[no,yes]", "federation.train_examples=null",
    "federation.validation_examples=4", "federation.test_examples=null",
]  # fmt: skip


@pytest.fixture
def rows() -> pd.DataFrame:
    texts = [f"text number {i}" for i in range(40)]
    return pd.DataFrame({"text": texts, "label": ["no", "yes"] * 20})


def written(rows: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        rows.to_json(path, orient="records", lines=True)
    else:
        rows.to_parquet(path)
    return path


@pytest.fixture
def machine(rows, tmp_path) -> dict[str, str]:
    """A node config that can be used, as Flower hands it on."""
    written(rows, tmp_path / "data" / "train.csv")
    (tmp_path / "models").mkdir()
    folders = f"{tmp_path}/data:{tmp_path}/models"
    words = f'client-id="north" data.path="{tmp_path}/data" store="{tmp_path}/new/store" paths="{folders}"'
    return parse_config_args([f'{words} forbid="B head"'])


def test_a_node_config_is_read_as_flower_hands_it_on(machine, tmp_path):
    data, models = tmp_path / "data", tmp_path / "models"
    expected = Node("north", data, tmp_path / "new/store", (data, models), ("B", "head"))
    assert Node.deployed(machine) == Node.read(machine) == expected
    assert Node.deployed({**machine, "data.path": str(data / "train.csv")}).data == data / "train.csv"
    assert Node.read({"partition-id": 3, "num-partitions": 9}) == Node("3")
    assert Node.read({"client-id": "north", "partition-id": 3}).client == "north"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("B head", ("B", "head")), ("B,head", ("B", "head")), (" B ,\t head,, A,", ("B", "head", "A")),
        ("*.layer.5.*,base", ("*.layer.5.*", "base")), ("bert.pooler.weight", ("bert.pooler.weight",)),
    ],
)  # fmt: skip
def test_commas_and_blanks_separate_what_a_node_forbids(machine, given, words):
    assert Node.deployed({**machine, "forbid": given}).forbid == words


UNREAD = [
    ({"forbid": "b"}, "'b' would keep nothing local (did you mean 'B'?)"),
    ({"forbid": "B heads"}, "'heads' would keep nothing local (did you mean 'head'?)"),
    ({"forbid": "B;head"}, "forbid: 'B;head' would keep nothing local"),
    ({"forbid": "Base"}, "did you mean 'base'?"),
    ({"forbid": "classifier"}, "expected roles (A, B, head, base) and patterns of tensor names"),
    ({"forbid": ""}, "forbid: is empty, so it would keep nothing local"),
    ({"forbid": " "}, "forbid: is empty, so it would keep nothing local"),
    ({"forbid": " ,\t,"}, "forbid: is empty, so it would keep nothing local"),
    ({"data.path": ""}, "data.path: is empty"),
    ({"data.path": " "}, "data.path: is empty"),
    ({"forbids": "B"}, "'forbids' is not one of"),
    ({"client-id": "../north"}, "client id '../north': expected 1 to 64 letters"),
    ({"client-id": ""}, "client id '': expected"),
    ({"client-id": "n" * 65}, "expected 1 to 64 letters"),
    ({"paths": "/::/"}, "paths: '' is not an absolute path"),
    ({"paths": "data"}, "paths: 'data' is not an absolute path"),
]


@pytest.mark.parametrize(("changes", "fault"), UNREAD)
def test_a_node_config_whose_words_cannot_be_meant_is_refused_at_start_and_at_each_message(
    machine, changes, fault
):
    for read in (Node.deployed, Node.read):
        with pytest.raises(ConfigError) as caught:
            read({**machine, **changes})
        assert fault in str(caught.value)


@pytest.mark.parametrize("place", ["clone/data/train-00000-of-00001.parquet", "saved"])
def test_a_folder_that_is_read_is_accepted_as_data_of_a_node(machine, rows, tmp_path, place):
    folder = tmp_path / place.partition("/")[0]
    if place == "saved":
        Dataset.from_pandas(rows).save_to_disk(str(folder))
    else:
        folder.mkdir()
        written(rows, tmp_path / place)
        (folder / "dataset_infos.json").write_text("{}")
    assert len(read_split(str(folder), "train")) == len(rows)
    assert Node.deployed({**machine, "data.path": str(folder)}).data == folder


@pytest.mark.parametrize(
    ("key", "place", "fault"),
    [
        ("store", "", "no store"), ("store", "data/train.csv", "train.csv is not a folder"),
        ("store", "data/train.csv/below", "train.csv is not a folder"),
        ("paths", "data/none", "paths: no folder at"), ("paths", "data/train.csv", "paths: no folder at"),
        ("data.path", "none", "data.path: there is nothing at"),
        ("data.path", "models", "has no file that can be read"),
        ("data.path", "described", "has no file that can be read"),
        ("data.path", "notes.txt", "expected .parquet, .csv, .tsv, .jsonl"),
    ],
)  # fmt: skip
def test_a_place_of_no_use_is_named_before_the_node_connects(machine, tmp_path, key, place, fault):
    (tmp_path / "notes.txt").write_text("text,label\n")
    (tmp_path / "described").mkdir()
    (tmp_path / "described" / "dataset_infos.json").write_text("{}")
    changed = {**machine, key: str(tmp_path / place) if place else ""}
    with pytest.raises(ConfigError) as caught:
        Node.deployed(changed)
    assert fault in str(caught.value)
    Node.read(changed)


def test_a_place_without_the_right_to_it_is_named(machine, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, right: False)
    with pytest.raises(ConfigError, match=r"store: .* cannot be written.*data\.path: .* cannot be read"):
        Node.deployed(machine)


def test_every_fault_of_a_node_config_is_told_before_the_node_starts(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Node.deployed({"data-path": "x", "data.path": str(tmp_path / "none"), "forbid": "b", "paths": "/::"})
    for fault in (
        "'data-path' is not one of", "did you mean 'data.path'?", "no store", "nothing at", "names no client",
        "did you mean 'B'?", "is not an absolute path",
    ):  # fmt: skip
        assert fault in str(caught.value)
    with pytest.raises(ConfigError, match="names no client"):
        Node.read({"store": "x"})


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--superlink", "a:1"], "no --node-config"),
        (["--node-config", "nothing"], "expected key=value"),
        (["--node-config", "client-id=north"], "expected key=value"),
        (["--node-config", 'client-id="a" forbid="B", "head"'], 'and nothing else: "head"'),
        (["--node-config", "none.toml"], "expected key=value.*No such file"),
        (["--node-config=client-id=1"], "no store"),
        (["--node-config", 'client-id=1 store="s" forbid="B,heads"'], "did you mean 'head'"),
        (["--port=9", "--node-config", "client-id=1 store=s"], "--port=9: set by"),
    ],
)
def test_a_node_that_cannot_be_is_refused_before_anything_starts(words, fault, monkeypatch):
    monkeypatch.setattr("fedsa_lora.deployment.node.subprocess.Popen", None)
    with pytest.raises(ConfigError, match=fault):
        run_node(words)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_data_of_a_node_are_its_clients_own_in_every_format(rows, tmp_path, suffix):
    config = load(OWN)
    plain = build.task(config, written(rows, tmp_path / "reference.csv")).load_client("north")
    data = build.task(config, written(rows, tmp_path / f"mine{suffix}")).load_client("north")
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 28, "validation": 4, "test": 8}
    ids = [tuple(ids) for part in parts.values() for ids in part.features["input_ids"]]
    assert len(set(ids)) == len(rows), "a row is in two parts, or in none"
    for name, part in parts.items():
        assert part.labels.tolist() == getattr(plain, name).labels.tolist()


def test_a_folder_with_a_test_split_is_tested_on_it(rows, tmp_path):
    written(rows, tmp_path / "mine" / "train.csv")
    written(rows.iloc[:6], tmp_path / "mine" / "test.csv")
    data = build.task(load([*OWN, "task.test_split=test"]), tmp_path / "mine").load_client("any name")
    assert (len(data.train), len(data.test)) == (36, 6)


def test_a_plug_in_that_reads_files_in_its_own_way_is_given_those_of_the_node(tmp_path):
    class Measured(TaskDefaults):
        """Rows in files, of no class that ships."""

        def at(self, path: Path):
            return path

    assert build.task(replace(load(OWN), task=Measured()), tmp_path) == tmp_path


def test_a_label_that_was_not_agreed_is_refused(rows, tmp_path):
    rows.loc[7, "label"] = "maybe"
    with pytest.raises(DataError, match="row 8: unknown label 'maybe'"):
        build.task(load(OWN), written(rows, tmp_path / "mine.csv")).load_client("north")


def test_run_and_node_must_agree_whose_data_are_trained_on(tmp_path):
    with pytest.raises(ConfigError, match="start this one with data"):
        build.task(load(OWN), None)
    with pytest.raises(ConfigError, match="the run partitions another data set"):
        build.task(load(DEPLOYED), tmp_path)


def test_the_server_needs_no_data_where_nodes_have_their_own(tmp_path):
    plan = make_plan(load([*OWN, f"run.dir={tmp_path / 'run'}"]))
    assert plan.federation.clients == {}
    assert plan.federation.labels == ("no", "yes")
    assert plan.place == Connection("10.0.0.1:8000")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["experiment=smoke", "task=text", "partition=own", "task.class_names=[a,b]"],
            "choose federation=",
        ),
        ([*DEPLOYED, "task=text", "partition=own"], "the classes must be fixed"),
        ([*OWN, "federation.label_meaning=per_client"], "classes are matched by name"),
        ([*DEPLOYED, "task=image", "model=tiny_vit", "partition=own"], "the classes must be fixed"),
        (["experiment=smoke", "federation.insecure=true"], "they belong to federation.superlink"),
    ],
)
def test_what_cannot_be_deployed_so_is_refused(words, fault):
    with pytest.raises(ConfigError, match=fault):
        load(words)


def test_nodes_have_no_data_of_their_own_for_a_task_that_reads_no_files():
    class Made(TaskDefaults):
        """Rows that no file holds."""

    run = load(OWN)
    assert not any("reads no files" in fault for fault in run.federation.clashes(run))
    faults = run.federation.clashes(replace(run, task=Made()))
    assert "partition=own: Made reads no files; expected a task of texts or of images" in faults


def test_nodes_may_have_images_of_their_own(tmp_path):
    words = [*DEPLOYED, "task=image", "model=tiny_vit", "partition=own", "task.class_names=[no,yes]"]
    plan = make_plan(load([*words, f"run.dir={tmp_path / 'run'}"]))
    assert plan.federation.labels == ("no", "yes")


def test_a_connection_tells_its_faults_and_is_read_by_flower_as_it_was_meant(tmp_path):
    with pytest.raises(ConfigError, match=r"'nowhere' is not an address.*no root certificates"):
        Connection("nowhere", tmp_path / "ca.crt")
    certificate = tmp_path / 'a "quoted" name.crt'
    certificate.touch()
    with pytest.raises(ConfigError, match="without TLS"):
        Connection("a:1", certificate, insecure=True)
    written = tomllib.loads(Connection("[::1]:8000", certificate).toml("ours"))["superlink"]
    assert written["default"] == "ours"
    assert written["ours"] == {"address": "[::1]:8000", "root-certificates": str(certificate)}


def test_a_superlink_that_does_not_answer_is_named(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(RunError, match=f"no SuperLink answers at {address}"):
        RunningSuperLink(Connection(address, insecure=True), tmp_path / "log").start()


END = "summary.json"  # the last that the run writes


def test_a_run_here_is_whole_with_the_last_file_that_it_writes(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "completed"}')
    completed = Outcome("completed", "")
    assert "the run completed" in failure(tmp_path, completed, END), "it ended while it wrote its summary"
    (tmp_path / END).write_text("{}")
    assert failure(tmp_path, completed, END) == ""


def test_a_run_on_another_machine_is_judged_by_its_log(tmp_path):
    log = tmp_path / "logs" / "flower.log"
    log.parent.mkdir()
    log.write_text("INFO :      [ROUND 1]\nINFO :      [ROUND 2]\n")
    completed = Outcome("completed", "")
    assert rounds_begun(log) == 2
    assert "the run has not started" in failure(tmp_path, completed, END), (
        "Flower calls a ServerApp that exits completed"
    )
    log.write_text(f"{log.read_text()}INFO :      {COMPLETE}: /runs/first\n")
    assert failure(tmp_path, completed, END) == ""
    assert failure(tmp_path, Outcome("failed", "no memory"), END) == "no memory"


def test_certificates_are_of_their_authority_and_keys_as_flower_reads_them(tmp_path):
    make_certificates(tmp_path, ["superlink.example", "10.0.0.1"], ["north"])
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "superlink.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.0.0.1"]
    private = load_ssh_private_key((tmp_path / "north.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "north.pub").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert uses_nist_ec_curve(public)
    assert private.public_key() == public
    for name in ("ca.key", "server.key", "north.key"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0, name


def test_nodes_are_added_later_and_nothing_is_overwritten(tmp_path):
    make_certificates(tmp_path, nodes=["north"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    added = make_certificates(tmp_path, nodes=["north", "south"])
    assert sorted(path.name for path in added) == ["registry", "south.key", "south.pub"]
    assert all((tmp_path / name).read_bytes().startswith(content) for name, content in before.items())
    for name in ("../x", "ca", "registry", ""):
        with pytest.raises(ConfigError, match="expected a node's name"):
            make_certificates(tmp_path, nodes=[name])


def certificate(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def days_left(found: x509.Certificate) -> float:
    return (found.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def is_accepted(server: Path, roots: str) -> bool:
    """Whether a node that trusts these roots, in PEM, goes on with a SuperLink that shows its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    there = ssl.MemoryBIO(), ssl.MemoryBIO()
    superlink = context.wrap_bio(*there, server_side=True)
    trusting = ssl.create_default_context(cadata=roots)
    node = trusting.wrap_bio(there[1], there[0], server_hostname="localhost")
    for _ in range(6):
        for side in (node, superlink):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return node.getpeercert() is not None


def test_the_root_outlives_the_certificate_of_the_superlink_by_years(tmp_path):
    make_certificates(tmp_path)
    assert 3649 < days_left(certificate(tmp_path, "ca")) < 3651
    assert 824 < days_left(certificate(tmp_path, "server")) < 826, "some systems refuse one of more"


@pytest.mark.parametrize("how", ["due", "asked", "a new host", "a lost key"])
def test_the_certificate_of_the_superlink_is_renewed_by_the_same_root(tmp_path, monkeypatch, how):
    with monkeypatch.context() as patch:
        if how == "due":
            patch.setattr("fedsa_lora.deployment.certificates.SERVER_DAYS", 59)
        make_certificates(tmp_path, ["hub.example", "10.0.0.1"], ["north"])
    if how == "a lost key":
        (tmp_path / "server.key").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    hosts = ["10.0.0.2"] if how == "a new host" else ["hub.example"]
    written = make_certificates(tmp_path, hosts, ["north"], renew=how == "asked")
    assert sorted(path.name for path in written) == ["server.crt", "server.key"]
    kept = {name for name, content in before.items() if (tmp_path / name).read_bytes() == content}
    assert kept == {"ca.crt", "ca.key", "north.key", "north.pub", "registry"}
    assert (tmp_path / "server.key").stat().st_mode & 0o077 == 0
    renewed = certificate(tmp_path, "server")
    assert days_left(renewed) > 824
    names = renewed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    added = ["10.0.0.2"] if how == "a new host" else []
    assert [str(n.value) for n in names] == ["localhost", "127.0.0.1", "hub.example", "10.0.0.1", *added]
    assert is_accepted(tmp_path, before["ca.crt"].decode()), "a node needs nothing new"
    assert make_certificates(tmp_path, hosts, ["north"]) == []


def test_nodes_are_added_where_the_key_of_the_root_is_kept_elsewhere(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fedsa_lora.deployment.certificates.SERVER_DAYS", 59)
        make_certificates(tmp_path)
    (tmp_path / "ca.key").rename(tmp_path / "elsewhere")
    before = (tmp_path / "server.crt").read_bytes()
    assert len(make_certificates(tmp_path, nodes=["north"])) == 3
    for words in ({"renew": True}, {"hosts": ["hub.example"]}):
        with pytest.raises(ConfigError, match=r"has no ca\.key.* copy it there"):
            make_certificates(tmp_path, **words)
    assert (tmp_path / "server.crt").read_bytes() == before


def test_files_of_another_root_are_not_mixed(tmp_path):
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        make_certificates(folder)
    (ours / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key does not match ca\.crt"):
        make_certificates(ours, renew=True)
    (ours / "ca.key").write_text("no key")
    with pytest.raises(ConfigError, match="not a private key in PEM"):
        make_certificates(ours, renew=True)
    (ours / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"has a ca\.key without its ca\.crt"):
        make_certificates(ours)


def test_no_certificate_outlives_its_root(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsa_lora.deployment.certificates.ROOT_DAYS", 50)
    make_certificates(tmp_path)
    root, server = (certificate(tmp_path, name).not_valid_after_utc for name in ("ca", "server"))
    assert root == server
    assert make_certificates(tmp_path) == [], "a new one would end on the same day"


def test_nodes_with_both_roots_in_one_file_go_on_while_the_root_is_changed(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        make_certificates(folder)
    first, second = ((folder / "ca.crt").read_text() for folder in (old, new))
    for both in (first + second, second + first):
        assert is_accepted(old, both)
        assert is_accepted(new, both)
    assert is_accepted(new, second)
    assert not is_accepted(old, second)


def test_a_node_exports_its_model_from_its_own_store_and_what_the_server_wrote(smoke_run, tmp_path):
    served, store = tmp_path / "run", tmp_path / "store"
    shutil.copytree(smoke_run, served, ignore=shutil.ignore_patterns("clients", "adapters"))
    shutil.copytree(smoke_run / "clients" / "2", store / "2")
    words = ["export", str(served), "--client", "2", "--store", str(store), "--to", str(tmp_path / "model")]
    assert main(words) == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "model" / name).read_bytes() == (smoke_run / "adapters" / "2" / name).read_bytes()

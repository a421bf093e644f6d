"""The registry of a federation: strictly read, kept by `fedsa-lora certificates`, only where keys count."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedsa_lora.cli import main
from fedsa_lora.config.compose import load
from fedsa_lora.config.paths import places
from fedsa_lora.deployment.certificates import REGISTRY, make_certificates
from fedsa_lora.deployment.registry import KIND, read_registry
from fedsa_lora.errors import ConfigError
from fedsa_lora.server.build import build_strategy, skeleton
from strategies.round.ledger import Unwritten

pytestmark = pytest.mark.case(32)
DEPLOYED = ["experiment=smoke", "federation=deployment", "federation.superlink=10.0.0.1:8000"]


def key(curve: ec.EllipticCurve | None = None) -> str:
    public = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def test_the_keys_of_a_registry_are_as_flower_has_them(tmp_path):
    make_certificates(tmp_path, nodes=["north", "south"])
    expected = {
        public_key_to_bytes(load_ssh_public_key((tmp_path / f"{name}.pub").read_bytes())): name
        for name in ("north", "south")
    }
    assert read_registry(tmp_path / REGISTRY) == expected


def test_every_fault_of_a_registry_is_told_with_its_line(tmp_path):
    first, second = key(), key()
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    lines = [
        f"{first} north", "", "# of the hub", f"{second} north", f"{first} south", f"{key()} ../x",
        f"{key()} two names", key(), f"{key(ec.SECP256R1())} east", f"{KIND} AAAA west",
        other.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " up", "nonsense",
        f"{KIND} {key(ec.SECP256R1()).split()[1]} down",
    ]  # fmt: skip
    (tmp_path / REGISTRY).write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        read_registry(tmp_path / REGISTRY)
    told = str(caught.value)
    assert str(tmp_path / REGISTRY) in told
    for fault in (
        "line 4: north has a key in line 1 already", "line 5: south has the key of line 1", 
        "line 6: client id",
        "line 7: expected", "line 8: expected", "line 9: expected", "line 10: the key of west cannot be read",
        "line 11: expected", "line 12: expected", "line 13: the key of down cannot be read",
    ):  # fmt: skip
        assert fault in told
    assert not any(f"line {number}:" in told for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("content", "fault"), [(None, "No such file"), (b"", "holds no key"), (b"\xff\xfe", "is not a text")]
)
def test_a_registry_that_is_none_is_an_error(tmp_path, content, fault):
    if content is not None:
        (tmp_path / REGISTRY).write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        read_registry(tmp_path / REGISTRY)


def test_nodes_are_added_to_the_registry_and_the_lines_of_others_stay(tmp_path):
    make_certificates(tmp_path, nodes=["north"])
    registry = tmp_path / REGISTRY
    north = registry.read_text()
    registry.write_text(f"# ours\n{north}")
    assert [path.name for path in make_certificates(tmp_path, nodes=["north", "south"])] == [
        "south.key", "south.pub", REGISTRY,
    ]  # fmt: skip
    assert registry.read_text().startswith(f"# ours\n{north}")
    assert set(read_registry(registry).values()) == {"north", "south"}
    assert make_certificates(tmp_path, nodes=["north", "south"]) == []
    registry.write_text(north)  # south was taken out, and nobody asks for it
    make_certificates(tmp_path)
    assert set(read_registry(registry).values()) == {"north"}


def test_a_key_whose_private_part_is_at_its_node_stays_and_a_new_one_takes_its_line(tmp_path):
    make_certificates(tmp_path, nodes=["north"])
    before = (tmp_path / "north.pub").read_bytes()
    (tmp_path / "north.key").unlink()
    assert make_certificates(tmp_path, nodes=["north"]) == []
    assert (tmp_path / "north.pub").read_bytes() == before
    (tmp_path / "north.pub").unlink()
    make_certificates(tmp_path, nodes=["north"])
    ((new, name),) = read_registry(tmp_path / REGISTRY).items()
    assert name == "north"
    assert new == public_key_to_bytes(load_ssh_public_key((tmp_path / "north.pub").read_bytes()))
    assert (tmp_path / "north.pub").read_bytes() != before
    (tmp_path / "north.pub").unlink()
    assert [path.name for path in make_certificates(tmp_path, nodes=["north"])] == ["north.pub"]


def test_a_key_of_another_client_and_a_registry_with_faults_are_not_written_over(tmp_path):
    make_certificates(tmp_path, nodes=["north"])
    registry = (tmp_path / REGISTRY).read_bytes()
    (tmp_path / "south.pub").write_bytes((tmp_path / "north.pub").read_bytes())
    with pytest.raises(ConfigError, match="the key of south is that of north"):
        make_certificates(tmp_path, nodes=["south"])
    assert (tmp_path / REGISTRY).read_bytes() == registry
    (tmp_path / REGISTRY).write_bytes(registry + b"nonsense\n")
    with pytest.raises(ConfigError, match="line 2: expected"):
        make_certificates(tmp_path, nodes=["west"])
    assert (tmp_path / REGISTRY).read_bytes() == registry + b"nonsense\n"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["experiment=smoke", "federation.registry=keys/registry"], "simulated nodes have no keys"),
        ([*DEPLOYED, "federation.insecure=true", "federation.registry=x"], "does not authenticate nodes"),
    ],
)
def test_a_registry_where_no_key_is_checked_is_refused(words, fault):
    with pytest.raises(ConfigError, match=rf"federation\.registry: .*{fault}"):
        load(words)


def test_a_registry_is_a_path_and_one_with_faults_is_told_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / REGISTRY).write_text("nonsense\n")
    config = load([*DEPLOYED, "federation.registry=registry"])
    assert config.federation.registry == str(tmp_path / REGISTRY)
    assert f'federation.registry="{tmp_path / REGISTRY}"' in places(config)
    with pytest.raises(ConfigError, match="line 1: expected"):
        build_strategy(config, skeleton(config), Unwritten())
    assert main(["run", "--dry-run", *DEPLOYED, "federation.registry=registry"]) == 1
    assert "line 1: expected" in capsys.readouterr().err
    elsewhere = load([*DEPLOYED, "federation.registry=/srv/of/the/superlink/registry"])
    build_strategy(elsewhere, skeleton(elsewhere), Unwritten())

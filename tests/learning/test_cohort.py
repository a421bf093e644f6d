"""A cohort's outcomes are those of one client after another, whatever the clients have in common."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cohort_cases import CONFIGS, Bench, bench
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.utils._python_dispatch import TorchDispatchMode

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.cohort import Cohort, attention, packed, products, slots, why_not
from fedsa_lora.learning.cohort.attention import Groups
from fedsa_lora.learning.cohort.block import Block
from fedsa_lora.learning.cohort.fit import spread
from fedsa_lora.learning.cohort.passes import ON_CPU, ON_GPU, rounded, token_bytes, tokens_within
from fedsa_lora.learning.importance import Scoring
from fedsa_lora.learning.job import Job, OneByOne
from fedsa_lora.learning.memory import pass_bytes
from fedsa_lora.learning.objectives import Ahead
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.tasks.text import TextData, TextTask

SGD = TrainSettings(optimizer="sgd", lr=0.1, steps=3, batch_size=4, clip_norm=None)
ADAMW = TrainSettings(lr=1e-2, head_lr=3e-2, steps=4, batch_size=4, weight_decay=0.1)
FLOAT32, FLOAT64 = 5e-5, 1e-11


@pytest.fixture(scope="module")
def bert() -> Bench:
    return bench("bert", double=True)


@pytest.fixture(params=[False, True], ids=["one after the other", "at once"])
def at_once(request, monkeypatch) -> bool:
    """How the products of several clients are made: as on a CPU, and as on a GPU."""
    monkeypatch.setattr(slots, "_launches_cost", lambda *_: request.param)
    return request.param


def trained(made: Bench, job: Job) -> tuple[dict[str, np.ndarray], float]:
    """A job alone: its tensors at the model's own precision, and its loss."""
    (outcome,) = OneByOne(made.model, made.task)([job])
    return {n: made.model.parameter(n).detach().numpy().copy() for n in job.values}, outcome.report.loss


def together(made: Bench, jobs: list[Job], tokens: int = ON_CPU):
    """The same of jobs in one block, in their order."""
    block = Block(OneByOne(made.model, made.task), jobs, tokens, products.Products())
    outcomes = block.outcomes()
    values = {}
    for row, place in enumerate(block.places):
        values[place] = {n: block.rows.client(row).parameter(n).detach().numpy() for n in made.layout.names}
    return [(values[k], outcome.report.loss) for k, outcome in enumerate(outcomes)]


def same(made: Bench, jobs: list[Job], within: float, tokens: int = ON_CPU) -> None:
    assert not any(why_not(job, made.model, made.task) for job in jobs)
    alone = [trained(made, job) for job in jobs]
    for (values, loss), (expected, expected_loss) in zip(together(made, jobs, tokens), alone, strict=True):
        assert abs(loss - expected_loss) < within
        for name in expected:
            assert_allclose(values[name], expected[name], rtol=0, atol=within, err_msg=name)
    moved = [np.abs(values[n] - jobs[0].values[n]).max() for values, _ in alone[:1] for n in jobs[0].trained]
    assert max(moved) > 100 * within, "training moves nothing: the test says nothing"


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - {"llama", "words"}))
@pytest.mark.usefixtures("at_once")
def test_in_float64_a_cohort_is_training_alone(kind):
    made = bench(kind, double=True)
    same(made, [made.job(client, ADAMW) for client in range(3)], FLOAT64)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.usefixtures("at_once")
def test_in_float32_too_with_and_without_dropout(kind, dropout):
    made = bench(kind, dropout=dropout)
    same(made, [made.job(client, SGD) for client in range(3)], FLOAT32)


@pytest.mark.parametrize("roles", ["A B", "B head", "A B head"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
        {"schedule": "cosine", "warmup": 0.5},
        {"clip_norm": 1e-2},
    ],
)
@pytest.mark.usefixtures("at_once")
def test_whatever_is_trained_and_however(bert, roles, changes):
    each = replace(ADAMW, **changes)
    same(bert, [bert.job(client, each, roles=roles) for client in range(3)], FLOAT64)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "words"])
@pytest.mark.parametrize(
    ("limit", "packed"),
    [
        ((attention, "WORTH", 0), False),  # as many groups of length as there may be
        ((products, "_packs", lambda weight: False), False),  # frozen weights laid out for MKL
        ((products, "_is_intel", lambda: False), True),  # and for oneDNN
    ],
    ids=["groups", "contiguous", "packed"],
)
def test_limits_change_the_work_and_not_the_outcome(monkeypatch, kind, limit, packed):
    monkeypatch.setattr(*limit)
    if packed:
        monkeypatch.setattr(products, "SMALL", 0)
    made = bench(kind, dropout=kind != "gpt2", double=not packed and kind != "words")
    each = replace(SGD, batch_size=9)
    within = FLOAT32 if packed or kind == "words" else FLOAT64
    within = max(within, 1e-7) if kind != "gpt2" else within  # masks are scaled in float32
    same(made, [made.job(client, each) for client in range(3)], within)


@pytest.mark.usefixtures("at_once")
def test_an_adapter_on_the_output_embeddings_reads_the_places_that_words_are_learned_in():
    made = bench("words", target_modules=["q_proj", "lm_head"])
    same(made, [made.job(client, SGD) for client in range(3)], FLOAT32)


def test_the_tokens_of_a_pass_are_those_of_a_cache_or_of_a_gpus_memory():
    assert build.workbench(load(["experiment=smoke", "machine.cohort=4"])).tokens == ON_CPU
    assert tokens_within(141 * 10**9, 2e5) == ON_GPU
    assert tokens_within(8 * 10**9, 1e6) == 3200  # .4 of it
    assert tokens_within(-(10**9), 1e6) == 1  # the weights alone are more than there is


def test_the_tokens_of_an_image_are_its_patches():
    of = bench("vit")
    examples = of.examples(0)
    whole = pass_bytes(of.model, of.task, examples, SGD)
    assert token_bytes(of.model, of.task, examples, SGD) * spread(of.model) == whole
    assert spread(of.model) > 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
def test_several_passes_a_step_change_the_work_and_not_the_outcome(kind):
    made = bench(kind, double=True)
    same(made, [made.job(client, replace(SGD, batch_size=9)) for client in range(3)], FLOAT64, tokens=40)


class Products(TorchDispatchMode):
    """Counts the products of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        self.count += func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm_)
        return func(*args, **(kwargs or {}))


def test_at_once_more_clients_take_no_more_products(at_once):
    made = bench("bert")
    job = made.job(0, replace(SGD, steps=1, batch_size=1))
    together(made, [job, replace(job)])  # the first pass of a model also looks for its dropout
    counts = []
    for clients in (2, 5):
        with Products() as products:
            together(made, [replace(job) for _ in range(clients)])
        counts.append(products.count)
    assert (counts[0] == counts[1]) is at_once


def test_passes_have_few_sizes_that_hold_their_tokens_with_little_beside():
    tokens = np.arange(1, 8193)
    sizes = np.array([rounded(int(n)) for n in tokens])
    assert (tokens <= sizes).all()
    assert (sizes <= tokens * 17 / 16).all()
    assert len(set(sizes)) < 170
    assert all(rounded(int(size)) == size for size in sizes)


def test_rows_that_belong_to_nobody_reach_no_one(monkeypatch):
    made = bench("gpt2", dropout=True)
    jobs = [made.job(client, SGD, asked=(made.examples(9, 5),)) for client in range(3)]
    sizes = []
    found = []
    for beside in (0, 3, 40):
        monkeypatch.setattr(
            packed, "rounded", lambda tokens, more=beside: sizes.append(tokens) or tokens + more
        )
        found.append(Cohort(made.model, made.task, 3)(jobs))
    assert max(sizes) > 40, "nothing was packed"
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert other.report.padded_tokens > other.report.tokens == one.report.padded_tokens
            for name in one.values:
                assert_allclose(other.values[name], one.values[name], rtol=0, atol=FLOAT32)
            assert_allclose(other.answers[0], one.answers[0], rtol=0, atol=FLOAT32)


def test_frozen_weights_are_laid_out_once_and_again_when_something_is_merged(bert, monkeypatch):
    laid_out = []
    of = products.Product.of
    monkeypatch.setattr(
        products.Product, "of", lambda module, kind: laid_out.append(module) or of(module, kind)
    )
    layers = {s.layer: np.full((16, 16), 0.1, np.float32) for s in bert.layout if s.role == "B"}
    plain = [bert.job(client, SGD) for client in range(2)]
    merged = [replace(job, merged=layers) for job in plain]
    cohort = Cohort(bert.model, bert.task, 2)
    counts = []
    for jobs in (plain, plain, merged, merged):
        outcomes = cohort(jobs)
        counts.append(len(laid_out))
        for one, other in zip(OneByOne(bert.model, bert.task)(jobs), outcomes, strict=True):
            assert abs(one.report.loss - other.report.loss) < FLOAT64
    linear = 6 * len(layers) // 2  # of each block of the encoder six, two of which have factors
    assert counts[:3] == [linear, linear, linear + len(layers)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(0, 9), st.integers(1, 3))
def test_groups_hold_every_token_of_every_sequence_once(lengths, beside, heads):
    count = sum(lengths)
    groups = Groups.of(np.array(lengths), count + beside)
    assert len(groups.groups) <= attention.GROUPS
    assert sorted(np.concatenate([group.members for group in groups.groups])) == list(range(len(lengths)))
    assert np.array_equal(groups.tokens[groups.places[:count]], np.arange(count))
    assert len(groups.tokens) == sum(group.sequences * group.longest for group in groups.groups)
    index = groups.index(heads, torch.device("cpu"))
    rows = torch.arange(count * heads)
    assert torch.equal(rows[index.gather][index.back[: count * heads]], rows)
    assert len(index.back) == (count + beside) * heads
    assert len(index.unused) == (len(groups.tokens) - count) * heads


@pytest.mark.usefixtures("at_once")
def test_each_client_has_rates_steps_and_batches_of_its_own(bert):
    each = [
        replace(ADAMW, lr=1e-3, steps=1),
        replace(ADAMW, lr=3e-3, steps=5, schedule="linear", batch_size=2),
        replace(ADAMW, head_lr=None, steps=3, weight_decay=0.0, clip_norm=None),
        replace(ADAMW, steps=2, warmup=1.0, batch_size=7),
    ]
    same(bert, [bert.job(client, one) for client, one in enumerate(each)], FLOAT64)


def test_the_terms_of_fedprox_are_each_clients_own(bert):
    def anchored(client: int, mu: float, role: str) -> Job:
        anchor = {s.name: bert.values(9)[s.name] for s in bert.layout if s.role == role}
        return bert.job(client, ADAMW, mu=mu, anchor=anchor)

    same(bert, [anchored(0, 0.5, "A"), anchored(1, 2.0, "head"), bert.job(2, ADAMW)], FLOAT64)


@pytest.mark.usefixtures("at_once")
def test_layers_and_clients_may_have_ranks_of_their_own():
    made = bench("bert", double=True, layer_ranks=[2, 5])
    jobs = []
    for client, rank in enumerate([1, 2, 5]):
        values = made.values(client)
        for spec in made.layout:
            if spec.role == "A":
                values[spec.name][rank:] = 0
            if spec.role == "B":
                values[spec.name][:, rank:] = 0
        jobs.append(made.job(client, replace(ADAMW, weight_decay=0.0), values=values))
    same(made, jobs, FLOAT64)
    for job, outcome in zip(jobs, Cohort(made.model, made.task, 3)(jobs), strict=True):
        assert all(
            (outcome.values[n][value == 0] == 0).all() for n, value in job.values.items() if "lora" in n
        )


@pytest.mark.parametrize("score", ["gradient", "fisher", "taylor"])
def test_importance_is_that_of_training_alone(bert, score):
    scoring = Scoring(score, tuple(s.name for s in bert.layout if s.role == "A"))
    each = [ADAMW, replace(ADAMW, steps=2, clip_norm=1e-3), ADAMW]
    jobs = [bert.job(client, one, scoring=scoring) for client, one in enumerate(each)]
    jobs[2] = replace(jobs[2], scoring=None)
    alone = OneByOne(bert.model, bert.task)(jobs)
    cohort = Cohort(bert.model, bert.task, 3)(jobs)
    for one, other in zip(alone[:2], cohort[:2], strict=True):
        assert_allclose(other.scores.sums, one.scores.sums, rtol=1e-9)
    assert cohort[2].scores is None


@pytest.mark.parametrize("kind", ["bert", "mean", "gpt2", "vit"])
@pytest.mark.usefixtures("at_once")
def test_answers_are_in_the_order_of_the_examples(kind):
    made = bench(kind, dropout=True)
    asked = [(made.examples(20, 40), made.examples(21, 1)), (made.examples(22, 5),), ()]
    jobs = [made.job(client, SGD, asked=asked[client]) for client in range(3)]
    jobs[1] = replace(jobs[1], batches=())
    alone = OneByOne(made.model, made.task)(jobs)
    for one, other in zip(alone, Cohort(made.model, made.task, 3)(jobs), strict=True):
        assert len(one.answers) == len(other.answers)
        for expected, found in zip(one.answers, other.answers, strict=True):
            assert_allclose(found, expected, rtol=0, atol=FLOAT32)
        assert one.report.examples == other.report.examples
        assert one.report.tokens == other.report.tokens <= other.report.padded_tokens


def test_the_order_of_clients_and_their_company_change_nothing(bert):
    jobs = [bert.job(client, replace(ADAMW, steps=2 + client % 3)) for client in range(5)]
    cohort = Cohort(bert.model, bert.task, 5)(jobs)
    turned = Cohort(bert.model, bert.task, 5)(jobs[::-1])[::-1]
    in_blocks = Cohort(bert.model, bert.task, 2)(jobs)
    for others in (turned, in_blocks):
        for one, other in zip(cohort, others, strict=True):
            assert abs(one.report.loss - other.report.loss) < FLOAT64
            for name in one.values:
                assert_allclose(other.values[name], one.values[name], rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("at_once")
def test_a_clients_nan_stops_that_client_alone(bert):
    jobs = [bert.job(client, ADAMW, asked=(bert.examples(30),)) for client in range(4)]
    jobs[1] = replace(jobs[1], values={n: v * np.float32(np.nan) for n, v in jobs[1].values.items()})
    jobs[2] = replace(jobs[2], settings=replace(ADAMW, optimizer="adamw", lr=1e300))
    found = Cohort(bert.model, bert.task, 4)(jobs)
    expected = Cohort(bert.model, bert.task, 4)([jobs[0], jobs[3]])
    for error, job in zip(found[1:3], jobs[1:3], strict=True):
        (alone,) = OneByOne(bert.model, bert.task)([job])
        assert isinstance(error, TrainingError)
        assert str(error) == str(alone)
    for one, other in zip((found[0], found[3]), expected, strict=True):
        for name in one.values:
            assert_allclose(one.values[name], other.values[name], rtol=1e-6, atol=1e-9)
        assert_allclose(one.answers[0], other.answers[0], atol=1e-6)


def test_a_model_is_as_it_was_after_a_cohort(bert):
    config = bert.model.module.get_base_model().config
    before = config._attn_implementation
    Cohort(bert.model, bert.task, 2)([bert.job(client, SGD) for client in range(2)])
    assert config._attn_implementation == before
    assert not any("forward" in vars(module) for module in bert.model.module.modules())
    plain = trained(bert, bert.job(0, SGD))
    assert plain[1] == trained(bert, bert.job(0, SGD))[1]


def test_what_cannot_be_done_together_is_done_alone_with_the_same_bits(bert):
    ahead = partial(Ahead, alpha=0.1, trained=frozenset(bert.layout.names), seed=0, key=())
    jobs = [
        bert.job(0, ADAMW),
        bert.job(1, ADAMW, objective=ahead),
        bert.job(2, replace(ADAMW, precision="fp16")),
        bert.job(3, SGD),
        bert.job(4, ADAMW, roles="B"),
    ]
    reasons = [why_not(job, bert.model, bert.task) for job in jobs]
    expected = ["the method has its own objective", "fp16 uses loss scaling"]
    assert reasons == [None, *expected, None, None]
    jobs.pop(2)  # the model is of float64
    found = Cohort(bert.model, bert.task, 8)(jobs)
    for job, outcome in zip(jobs, found, strict=True):
        (alone,) = OneByOne(bert.model, bert.task)([job])
        assert all(np.array_equal(outcome.values[n], alone.values[n]) for n in alone.values)


class Tagged(TextData):
    """A plug-in that trains as our texts do, and predicts by reading another output of the model."""

    columns = None
    collate = TextTask.collate

    def encode(self, inputs, labels):
        raise NotImplementedError

    def predict(self, model, batch):
        return model.base_model(batch["input_ids"]).last_hidden_state[:, 0]


def test_a_plug_in_that_predicts_no_logits_is_trained_together_and_asked_alone(bert):
    task = Tagged(model=bert.task.model, dataset="none")
    task.__dict__["tokenizer"] = bert.task.tokenizer
    training, asked = bert.job(0, SGD), bert.job(0, SGD, batches=(), asked=(bert.examples(1),))
    assert why_not(training, bert.model, task) is None
    assert why_not(asked, bert.model, bert.task) is None
    assert why_not(asked, bert.model, task) == "Tagged predicts something else than logits of classes"


def test_what_is_merged_into_the_weights_of_some_is_merged_for_them_alone(bert):
    def merged(client: int, value: float) -> Job:
        layers = {s.layer: np.full((16, 16), value, np.float32) for s in bert.layout if s.role == "B"}
        return bert.job(client, ADAMW, merged=layers)

    same(bert, [merged(0, 0.1), merged(1, 0.1)], FLOAT64)
    jobs = [bert.job(0, ADAMW), merged(1, 0.1), merged(2, 0.2), bert.job(3, ADAMW), merged(4, 0.1)]
    alone, cohort = OneByOne(bert.model, bert.task)(jobs), Cohort(bert.model, bert.task, 5)(jobs)
    for one, other in zip(alone, cohort, strict=True):
        assert abs(one.report.loss - other.report.loss) < FLOAT64


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"variant": "dora"}, "an adapter is not plain LoRA on a linear layer"),
        ({"variant": "vera"}, "an adapter is not plain LoRA on a linear layer"),
        ({"target_modules": ["word_embeddings"]}, "an adapter is not plain LoRA on a linear layer"),
        ({"init": "pissa"}, None),
        ({"rslora": True, "targets": "all_linear"}, None),
    ],
)
def test_adapters_say_what_stands_against_them(lora, reason):
    made = bench("bert", **lora)
    jobs = [made.job(client, SGD) for client in range(2)]
    assert [why_not(job, made.model, made.task) for job in jobs] == [reason, reason]
    if reason is None:
        same(made, jobs, FLOAT32)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "words"])
def test_half_precision_stays_near_that_of_training_alone(kind):
    made = bench(kind, dropout=True)
    jobs = [made.job(client, replace(SGD, precision="bf16")) for client in range(3)]
    alone, cohort = OneByOne(made.model, made.task)(jobs), Cohort(made.model, made.task, 3)(jobs)
    for one, other in zip(alone, cohort, strict=True):
        assert abs(one.report.loss - other.report.loss) < 0.02
        for name in one.values:
            assert other.values[name].dtype == np.float32
            step = np.abs(one.values[name] - one.start[name]).max()
            assert np.abs(one.values[name] - other.values[name]).max() <= 0.1 * step + 1e-3
    assert torch.get_autocast_dtype("cpu") == torch.bfloat16

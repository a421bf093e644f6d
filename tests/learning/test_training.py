"""The local loop: batches, precision, schedules, and the law that each option obeys."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsa_lora.config.compose import load
from fedsa_lora.errors import TrainingError
from fedsa_lora.learning import training
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.dropout import Sites
from fedsa_lora.learning.lengths import WORTH, of_similar_length
from fedsa_lora.learning.masking import masked
from fedsa_lora.learning.training import TrainSettings, epoch_batches, predict, round_batches, train
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.task import Examples

SETTINGS = TrainSettings(lr=1e-2, head_lr=1e-2, steps=4, batch_size=4)


@pytest.fixture(scope="module")
def bench():
    """A real small task: one client of the smoke experiment."""
    config = load(["experiment=smoke", "lora.dropout=0"])
    model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
    data = config.task.load_client("0")
    return SimpleNamespace(task=config.task, model=model, data=data, start=initial_state(model.layout, 0))


def trained(bench, settings: TrainSettings, roles: str = "A B head", **changes):
    names = frozenset(s.name for s in bench.model.layout if s.role in roles.split())
    bench.model.write(bench.start)
    batches = round_batches(bench.data.train.lengths, settings, changes.pop("rng", generator(0, "test")))
    options = {"trained": names, "batches": batches, "torch_seed": 1} | changes
    report = train(bench.model, bench.task, bench.data.train, settings, **options)
    return bench.model.read(), report


def difference(one, two) -> float:
    return max(float(abs(one[name] - two[name]).max()) for name in one)


def test_every_layer_is_in_training_while_it_trains_and_in_evaluation_else(bench, monkeypatch):
    """Also where no pass looks for dropout sites first, as on a GPU."""
    model = AdapterModel(attach(bench.task.build_model(seed=0), load(["experiment=smoke"]).lora))
    monkeypatch.setattr(training, "dropout_sites", lambda *arguments: Sites())
    modes = []

    def noted(*arguments):
        modes.append({part.training for part in model.module.modules()})

    assert {part.training for part in model.module.modules()} == {False}
    alone = SimpleNamespace(**vars(bench) | {"model": model})
    for _ in range(2):
        trained(alone, SETTINGS, observe=noted)
        predict(model, bench.task, bench.data.test, SETTINGS)
        assert {part.training for part in model.module.modules()} == {False}
    assert modes == [{True}] * 2 * (SETTINGS.steps - 1)


lengths = st.lists(st.integers(1, 200), min_size=1, max_size=150).map(lambda v: np.array(v, dtype=np.int64))


@settings(max_examples=50, deadline=None)
@given(lengths, st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_holds_every_example_once_and_no_batch_is_too_large(sizes, batch_size, seed):
    batches = epoch_batches(sizes, batch_size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(sizes)))
    assert max(map(len, batches)) <= batch_size


@settings(max_examples=30, deadline=None)
@given(lengths, st.integers(1, 20), st.integers(1, 40))
def test_steps_and_epochs_are_counted_exactly(sizes, batch_size, count):
    steps = TrainSettings(steps=count, batch_size=batch_size)
    assert len(round_batches(sizes, steps, np.random.default_rng(0))) == count
    epochs = TrainSettings(steps=None, epochs=3, batch_size=batch_size)
    seen = np.concatenate(round_batches(sizes, epochs, np.random.default_rng(0)))
    assert (np.bincount(seen) == 3).all()


def test_bucketing_keeps_padding_low_on_real_texts():
    config = load(["experiment=quickstart"])
    data = config.task.load_client("0").train
    rng = np.random.default_rng(0)
    batches = [batch for _ in range(20) for batch in epoch_batches(data.lengths, 8, rng)]
    padded = sum(data.lengths[batch].max() * len(batch) for batch in batches)
    assert padded / sum(data.lengths[batch].sum() for batch in batches) <= 1.15
    shuffled = [rng.permutation(len(data))[:8] for _ in batches]
    assert padded < 0.85 * sum(data.lengths[batch].max() * 8 for batch in shuffled)


def test_only_the_trained_tensors_move_and_the_backbone_never(bench):
    backbone = {n: p.clone() for n, p in bench.model.module.named_parameters() if not p.requires_grad}
    after, _ = trained(bench, SETTINGS, roles="B head")
    for spec in bench.model.layout:
        moved = not np.array_equal(after[spec.name], bench.start[spec.name])
        assert moved == (spec.role in {"B", "head"}), spec.name
    for name, parameter in bench.model.module.named_parameters():
        if name in backbone:
            assert torch.equal(parameter, backbone[name])
            assert parameter.grad is None


def test_the_same_seeds_give_the_same_bits_and_others_do_not(bench):
    one, two = trained(bench, SETTINGS)[0], trained(bench, SETTINGS)[0]
    other = trained(bench, SETTINGS, rng=generator(1, "test"))[0]
    assert difference(one, two) == 0 < difference(one, other)


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 2e-2), ("sgd", 0.5)])
def test_training_lowers_the_loss_on_its_own_examples(bench, optimizer, lr):
    options = replace(SETTINGS, optimizer=optimizer, lr=lr, head_lr=lr, steps=60, batch_size=8)
    first = trained(bench, replace(options, steps=1))[1].loss
    after, _ = trained(bench, options)
    bench.model.write(after)
    logits = torch.from_numpy(predict(bench.model, bench.task, bench.data.train, options))
    labels = torch.from_numpy(bench.data.train.labels)
    assert float(nn.functional.cross_entropy(logits, labels)) < 0.8 * first


def test_sgd_of_one_step_is_the_gradient_by_hand(bench):
    options = replace(SETTINGS, optimizer="sgd", steps=1, clip_norm=None, lr=0.1, head_lr=0.1)
    after, _ = trained(bench, options)
    bench.model.write(bench.start)
    bench.model.set_trainable(frozenset(bench.model.layout.names))
    (indices,) = round_batches(bench.data.train.lengths, options, generator(0, "test"))
    bench.model.module.train()
    with masked(bench.model.module, bench.model.sites, 1):
        bench.task.loss(bench.model.module, bench.task.collate(bench.data.train, indices)).backward()
    for spec in bench.model.layout:
        gradient = bench.model.parameter(spec.name).grad.numpy()
        np.testing.assert_allclose(after[spec.name], bench.start[spec.name] - 0.1 * gradient, atol=1e-7)


def test_clipping_bounds_the_step_of_sgd(bench):
    options = replace(SETTINGS, optimizer="sgd", steps=1, lr=1.0, head_lr=1.0, clip_norm=1e-3)
    after, _ = trained(bench, options)
    step = np.sqrt(sum(float(((after[n] - bench.start[n]) ** 2).sum()) for n in after))
    assert step == pytest.approx(1e-3, rel=1e-3)


def test_the_head_has_a_rate_of_its_own(bench):
    after, _ = trained(bench, replace(SETTINGS, head_lr=1e-12))
    still = {s.name for s in bench.model.layout if np.allclose(after[s.name], bench.start[s.name], atol=1e-9)}
    assert {s.name for s in bench.model.layout if s.role == "head"} == still


def test_a_schedule_that_ends_at_zero_moves_less_than_a_constant_one(bench):
    constant, _ = trained(bench, SETTINGS)
    for schedule in ("linear", "cosine"):
        scheduled, _ = trained(bench, replace(SETTINGS, schedule=schedule))
        assert 0 < difference(scheduled, bench.start) < difference(constant, bench.start)
    warm, _ = trained(bench, replace(SETTINGS, warmup=1.0))
    assert 0 < difference(warm, bench.start) < difference(constant, bench.start)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32_and_the_adapter_stays_float32(bench, precision):
    full, _ = trained(bench, SETTINGS)
    half, report = trained(bench, replace(SETTINGS, precision=precision))
    assert np.isfinite(report.loss)
    assert 0 < difference(full, half) < 5 * SETTINGS.lr
    assert all(array.dtype == np.float32 for array in half.values())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("experiment", ["smoke", "digits"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rounding_frozen_weights_once_gives_the_bits_of_autocast(experiment, precision):
    config = load([f"experiment={experiment}"])
    data, options = config.task.load_client("0"), replace(SETTINGS, precision=precision)
    found = []
    for hold in (False, True):
        model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
        if hold:
            model.hold_frozen(options.dtype)
        bench = SimpleNamespace(
            task=config.task, model=model, data=data, start=initial_state(model.layout, 0)
        )
        after, _ = trained(bench, options)
        found.append(after | {"logits": predict(model, config.task, data.test, options)})
    assert difference(*found) == 0
    kinds = {name: p.dtype for name, p in model.module.named_parameters()}
    held = {name for name, kind in kinds.items() if kind == options.dtype}
    assert held
    assert not any("lora_" in n or "base_layer" in n or "modules_to_save" in n for n in held)
    assert all(kinds[name] == torch.float32 for name in kinds.keys() - held)


def test_the_proximal_term_pulls_towards_its_reference(bench):
    reference = {s.name: bench.start[s.name] for s in bench.model.layout if s.role == "B"}
    options = replace(SETTINGS, optimizer="sgd", lr=0.1)
    free, none, pulled = (
        trained(bench, options, proximal=proximal)[0]
        for proximal in (None, (0.0, reference), (5.0, reference))
    )
    assert difference(free, none) == 0

    def distance(state):
        return sum(float(((state[n] - reference[n]) ** 2).sum()) for n in reference)

    assert distance(pulled) < distance(free)


def test_the_proximal_term_adds_mu_times_the_distance_to_the_gradient(bench):
    """w - lr (g + mu (w - reference)) of FedProx (arXiv:1812.06127), where the reference is not the start."""
    rng, mu, lr = np.random.default_rng(0), 0.3, 0.1
    reference = {
        spec.name: bench.start[spec.name] + rng.normal(size=spec.shape).astype(np.float32)
        for spec in bench.model.layout
        if spec.role in ("A", "B")
    }
    options = replace(SETTINGS, optimizer="sgd", lr=lr, steps=1, clip_norm=None)
    free, pulled = (trained(bench, options, proximal=term)[0] for term in (None, (mu, reference)))
    for name, values in free.items():
        anchor = reference.get(name, bench.start[name])
        expected = values - lr * mu * (bench.start[name] - anchor)
        np.testing.assert_allclose(pulled[name], expected, rtol=0, atol=1e-6)


def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_do(bench):
    with pytest.raises(TrainingError, match=r"the loss became .* at step \d of 4: lower train.lr"):
        trained(bench, replace(SETTINGS, lr=1e30, head_lr=1e30))


@given(st.lists(st.integers(1, 300), max_size=150), st.integers(1, 64))
def test_evaluation_takes_each_example_once_in_batches_with_less_padding(lengths, size):
    lengths = np.array(lengths, np.int64)

    def padded(batches):
        return sum(len(batch) * int(lengths[batch].max()) for batch in batches)

    batches = [*of_similar_length(lengths, size, WORTH)]
    whole = [*of_similar_length(lengths, size, np.inf)]
    assert sorted(np.concatenate([*batches, np.zeros(0, int)])) == list(range(len(lengths)))
    assert len(whole) == -(-len(lengths) // size)
    assert max(map(len, batches), default=0) <= size
    assert padded(whole) - padded(batches) >= WORTH * (len(batches) - len(whole))
    for batch in batches:  # no cut is left that would save enough
        assert len(batch) * lengths[batch].max() - lengths[batch].sum() <= WORTH * len(batch)


def test_logits_come_in_the_order_of_the_examples_whatever_the_batch(bench):
    bench.model.write(bench.start)
    one = predict(bench.model, bench.task, bench.data.test, replace(SETTINGS, eval_batch_size=1))
    many = predict(bench.model, bench.task, bench.data.test, SETTINGS)
    np.testing.assert_allclose(one, many, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(bench.data.test))
    test = bench.data.test
    permuted = Examples(
        {k: [v[i] for i in order] for k, v in test.features.items()}, test.labels[order], test.lengths[order]
    )
    np.testing.assert_allclose(predict(bench.model, bench.task, permuted, SETTINGS), many[order], atol=1e-5)


def test_the_report_counts_examples_and_tokens(bench):
    _, report = trained(bench, replace(SETTINGS, steps=None, epochs=2))
    assert report.examples == 2 * len(bench.data.train)
    assert report.tokens == 2 * bench.data.train.lengths.sum() <= report.padded_tokens
    assert report.seconds > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_to_the_same_state_as_the_cpu(bench):
    cpu, _ = trained(bench, SETTINGS)
    bench.model.module.to("cuda")
    gpu, _ = trained(bench, SETTINGS)
    bench.model.module.to("cpu")
    assert difference(cpu, gpu) < 1e-3


@pytest.mark.parametrize("length", [{"steps": 4}, {"steps": None, "epochs": 2}])
def test_without_an_example_there_is_an_error_and_no_end_of_waiting(length):
    with pytest.raises(TrainingError, match="no example to train on"):
        round_batches(np.zeros(0, np.int64), replace(SETTINGS, **length), generator(0, "batches", "0", 1))

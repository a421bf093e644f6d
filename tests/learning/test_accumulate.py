"""Accumulation: a step in several passes is the step over all their examples."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cohort_cases import bench

from fedsa_lora.learning.cohort import Cohort
from fedsa_lora.learning.importance import Scoring
from fedsa_lora.learning.job import Job, OneByOne, settled
from fedsa_lora.learning.objectives import Ahead
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import Objective, passes

WHOLE = TrainSettings(optimizer="sgd", lr=0.1, steps=4, batch_size=15, clip_norm=0.1)
IN_PARTS = replace(WHOLE, batch_size=5, accumulate=3)  # of 20 examples: steps of 15 and of 5


def apart(one, two) -> float:
    return max(float(abs(one[name] - two[name]).max()) for name in one)


@pytest.fixture(scope="module")
def words():
    """A causal language model, whose loss is a mean over the tokens of answers of any length."""
    return bench("words", double=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["bert", "llama", "words", "vit"])
def test_the_gradient_is_that_of_the_mean_loss_of_all_passes(kind):
    """In the model's own double precision: what is left is the rounding of float32 where values leave it."""
    of = bench(kind, double=True)
    jobs = [of.job(0, settings) for settings in (WHOLE, IN_PARTS)]
    assert all(np.array_equal(*pair) for pair in zip(*(job.batches for job in jobs), strict=True))
    one, two = map(settled, OneByOne(of.model, of.task)(jobs))
    assert apart(one.values, two.values) < 1e-7 < 1e-3 < apart(one.values, one.start)
    assert two.report.loss == pytest.approx(one.report.loss, rel=1e-6)
    assert (two.report.steps, two.report.examples) == (one.report.steps, one.report.examples)
    assert two.report.padded_tokens <= one.report.padded_tokens


def test_a_pass_weighs_as_many_terms_as_its_loss_is_the_mean_of(words):
    """With equal weights answers of a pass with few tokens would count for more."""
    examples = words.examples(0)
    objective = Objective(words.model, words.task, examples, IN_PARTS)
    answers = [(labels[1:] >= 0).sum() for labels in examples.features["labels"][:15]]
    shares = [share for share, _ in objective.parts(np.arange(15))]
    assert len({*shares}) == 3
    expected = [sum(answers[at : at + 5]) / sum(answers) for at in (0, 5, 10)]
    assert shares == pytest.approx(expected)


def test_a_pass_without_an_answer_is_left_out(words):
    examples = words.examples(0)
    for i in range(5):
        examples.features["labels"][i][:] = -100
    objective = Objective(words.model, words.task, examples, IN_PARTS)
    shares = objective.parts(np.arange(12))
    assert [list(part) for _, part in shares] == [[5, 6, 7, 8, 9], [10, 11]]
    assert sum(share for share, _ in shares) == pytest.approx(1)


@pytest.mark.parametrize("added", ["proximal", "importance", "per_fedavg"])
def test_what_is_added_to_a_step_sees_the_whole_step(words, added):
    names = words.layout.names
    options = {
        "proximal": {"mu": 0.5, "anchor": words.values(1)},
        "importance": {"scoring": Scoring("fisher", names)},
        "per_fedavg": {
            "objective": partial(Ahead, alpha=0.1, trained=frozenset(names), seed=0, key=("0", 1))
        },
    }
    jobs = [words.job(0, settings, **options[added]) for settings in (WHOLE, IN_PARTS)]
    one, two = map(settled, OneByOne(words.model, words.task)(jobs))
    assert apart(one.values, two.values) < 1e-7
    if added == "importance":
        np.testing.assert_allclose(one.scores.sums, two.scores.sums, rtol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_accumulates_in_float32(precision):
    of = bench("words")
    jobs = [of.job(0, replace(settings, precision=precision)) for settings in (WHOLE, IN_PARTS)]
    one, two = map(settled, OneByOne(of.model, of.task)(jobs))
    assert apart(one.values, two.values) < 2e-3


def test_one_pass_has_the_bits_of_a_step_without_accumulation(words):
    """Also where a step has fewer examples than a pass may hold."""
    small = replace(WHOLE, batch_size=30)
    jobs = [words.job(0, settings) for settings in (small, replace(small, accumulate=2))]
    one, two = map(settled, OneByOne(words.model, words.task)(jobs))
    assert apart(one.values, two.values) == 0
    assert one.report.loss == two.report.loss


def test_a_cohort_accumulates_one_by_one():
    of = bench("bert")
    jobs: list[Job] = [of.job(client, replace(IN_PARTS, steps=2)) for client in range(2)]
    alone = OneByOne(of.model, of.task)(jobs)
    together = Cohort(of.model, of.task, 2)(jobs)
    for one, two in zip(alone, together, strict=True):
        assert apart(settled(one).values, settled(two).values) == 0


def test_passes_hold_every_example_of_a_step_once():
    indices = np.random.default_rng(0).permutation(13)
    assert np.array_equal(np.concatenate(passes(indices, IN_PARTS)), indices)
    assert [len(part) for part in passes(indices, IN_PARTS)] == [5, 5, 3]
    assert len(passes(indices, WHOLE)) == 1

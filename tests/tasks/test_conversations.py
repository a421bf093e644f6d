"""Templates around prompts and chats: what is learned, and the same words in training and in writing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from language import LLAMA, write_tokenizer
from transformers import AutoTokenizer

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.tasks.causal_lm import IGNORED, CausalLMTask
from fedsa_lora.tasks.conversation import TEMPLATES, Template
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings

CHATML = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "Four, five."},
    {"role": "user", "content": "Six?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = write_tokenizer(tmp_path_factory.mktemp("chat"))
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(place)
    rows = [{"chat": TURNS, "asked": "One?", "said": "Two.", "text": "One two."}] * 4
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def made(folder: Path, **changes) -> CausalLMTask:
    model = ModelSettings(pretrained=False, tokenizer=str(folder), config=LLAMA)
    columns = {"prompt": "asked", "answer": "said", "max_length": 300}
    fields = {
        "model": model,
        "dataset": str(folder / "train.jsonl"),
        "partition": PartitionSettings(clients=1),
    }
    return CausalLMTask(**fields | columns | changes)


def example(task: CausalLMTask) -> tuple[str, str]:
    """The words of the first example, and those of them that are learned."""
    features = task.load_client("0").train.features
    ids, labels = features["input_ids"][0], features["labels"][0]
    assert np.array_equal(ids[labels != IGNORED], labels[labels != IGNORED])
    return task.tokenizer.decode(ids), task.tokenizer.decode(labels[labels != IGNORED])


def test_of_a_chat_the_answers_of_all_turns_are_learned_with_their_ends(folder):
    whole, learned = example(made(folder, messages="chat"))
    assert learned == "Two.</s>Four, five.</s>"
    assert whole == (
        "<s>[system]Be brief.\n[user]One?\n[assistant]Two.</s>\n[user]Three?\n[assistant]Four, five.</s>"
    ), "what comes behind the last answer is left out"


def test_a_prompt_and_its_answer_are_a_chat_of_one_turn(folder):
    assert example(made(folder)) == ("<s>[user]One?\n[assistant]Two.</s>", "Two.</s>")


def test_the_known_templates_are_those_of_their_models(folder):
    whole, learned = example(made(folder, template="alpaca"))
    assert learned == "Two.</s>"
    assert whole == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nOne?\n\n### Response:Two.</s>"
    )
    whole, learned = example(made(folder, template="vicuna"))
    assert whole.endswith("to the user's questions. USER: One? ASSISTANT: Two.</s>")
    assert learned == " Two.</s>"


@pytest.mark.parametrize("template", ["alpaca", "vicuna", "Q: {prompt} A:"])
def test_any_template_carries_a_chat_of_several_turns(folder, template):
    whole, learned = example(made(folder, messages="chat", template=template))
    assert whole.startswith("<s>Be brief."), "a system message takes the place of the template's own"
    assert learned.replace(" ", "") == "Two.</s>Four,five.</s>"
    assert whole.count("Three?") == 1
    assert "Six?" not in whole


def test_of_a_text_every_token_is_learned_but_the_first(folder):
    assert example(made(folder, text="text")) == ("<s>One two.</s>", "One two.</s>")


def test_the_words_of_a_prompt_have_no_gradient(folder):
    task = made(folder, messages="chat")
    model, examples = task.build_model(seed=0), task.load_client("0").train
    batch, seen = task.collate(examples, np.arange(1)), []

    def keep(module, given, logits):
        logits.retain_grad()
        seen.append(logits)

    model.lm_head.register_forward_hook(keep)
    task.loss(model, batch).backward()
    moved = seen[0].grad[0, :-1].abs().sum(dim=1) > 0
    assert torch.equal(moved, batch["labels"][0, 1:] != IGNORED)


@pytest.mark.parametrize("template", ["chat", "alpaca", "Q: {prompt} A:"])
def test_a_model_is_given_the_words_that_it_was_trained_on(folder, template):
    task = made(folder, messages="chat", template=template, measured=["perplexity", "exact_match"])
    examples, given = task.load_client("0").train, []

    class Writer:
        def generate(self, input_ids, **options):
            given.append(input_ids[0].numpy())
            return input_ids

    task.write(Writer(), task.collate(examples, np.arange(1)))
    trained = examples.features["input_ids"][0]
    assert np.array_equal(given[0], trained[: len(given[0])])
    rest = task.tokenizer.decode(trained[len(given[0]) :])
    assert rest == "Four, five.</s>", "and has to write the last answer"


def test_a_long_chat_loses_its_beginning_and_a_long_text_its_end(folder):
    whole = made(folder, messages="chat").load_client("0").train.features["input_ids"][0]
    cut = made(folder, messages="chat", max_length=20).load_client("0").train.features["input_ids"][0]
    assert np.array_equal(cut, whole[-20:])
    assert example(made(folder, text="text", max_length=4))[0] == "<s>One"


def test_the_end_is_that_of_the_models_config_and_generation_stops_at_every_one(folder):
    config = LLAMA | {"eos_token_id": [7, 2]}
    model = ModelSettings(pretrained=False, tokenizer=str(folder), config=config)
    assert made(folder, model=model).ends == (2, 7), "the tokenizer's is one of them"
    model = ModelSettings(pretrained=False, tokenizer=str(folder), config=LLAMA | {"eos_token_id": 7})
    task = made(folder, model=model, template="Q: {prompt} A:")
    assert task.ends == (7, 2)
    assert task.load_client("0").train.features["input_ids"][0][-1] == 7
    bare = {name: value for name, value in LLAMA.items() if name != "eos_token_id"}
    model = ModelSettings(pretrained=False, tokenizer=str(folder), config=bare)
    assert made(folder, model=model).ends == (2,), "the default of a model type is no statement"


def test_the_plan_says_what_stands_around_a_prompt(folder):
    assert made(folder).inspect() == (
        "an answer ends with '</s>' (token 2)",
        "around a prompt stands the tokenizer's chat template",
    )
    assert made(folder, text="text").inspect() == ("a text ends with '</s>' (token 2)",)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template: set task.template to alpaca, vicuna"),
        (CHATML.replace("</s>", "!"), "ends an answer with none of </s>"),
        (CHATML.replace("}[assistant]", "}[model]"), "after another text than the prompt"),
    ],
)
def test_a_chat_template_that_cannot_be_learned_from_is_refused_before_a_run(folder, template, said):
    task = made(folder)
    task.tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=said):
        task.inspect()


@pytest.mark.parametrize(
    "chat",
    [
        "hello",
        [],
        [{"role": "user", "content": "One?"}],
        [{"role": "assistant", "content": "Two."}],
        [{"role": "user", "content": None}, {"role": "assistant", "content": "Two."}],
        [{"role": "human", "content": "One?"}, {"role": "assistant", "content": "Two."}],
        [{"from": "user", "value": "One?"}],
    ],
)
def test_rows_that_are_no_chat_are_named(tmp_path, folder, chat):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"chat": chat}) + "\n" for _ in range(3)))
    with pytest.raises(DataError, match=r"row 1 \(and 2 more\) is not a conversation; expected a list of"):
        made(folder, dataset=str(path), messages="chat").describe()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": "text", "messages": "chat"}, "give one of them"),
        ({"template": "alpacca"}, "expected chat, alpaca, vicuna, or a text with {prompt} in it, once"),
        ({"measured": ["perplexity", "rouge_1"]}, "measured has 'rouge_1'.*did you mean 'rouge_l'"),
        ({"measured": ["loss", "loss"]}, "expected each measure once"),
        ({"text": "text", "measured": ["bleu"]}, "'bleu', which is of answers, and a text has none"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, changes, said):
    with pytest.raises(ConfigError, match=said):
        made(folder, **changes)


def test_a_template_is_filled_in_literally():
    template = Template("{prompt}!")
    messages = [{"role": "user", "content": "{prompt} %s {x}"}, {"role": "assistant", "content": "a"}]
    assert [part.text for part in template.parts(messages)] == ["{prompt} %s {x}!", "a"]
    assert all(template.turn.count("{prompt}") == 1 for template in TEMPLATES.values())

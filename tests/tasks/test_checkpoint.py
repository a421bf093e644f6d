"""Every weight of a checkpoint is accounted for before it is used, without reading one."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification as Auto
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from fedsa_lora.errors import ModelError
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach, initial_state
from fedsa_lora.tasks import checkpoint
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone, start_of
from fedsa_lora.tasks.checkpoint import shapes
from fedsa_lora.tasks.heads import head_of

LABELS = ("a", "b", "c")
SMALL = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24,
}  # fmt: skip
HEAD = {"classifier.weight", "classifier.bias"}


def classifier(folder, **config):
    """A whole checkpoint with a head of its own."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SMALL, **({"num_labels": 3} | config)))
    model.save_pretrained(folder)
    return model


def rewritten(folder, change):
    """The checkpoint with its tensors changed."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def start(folder, labels=LABELS, **settings):
    made = ModelSettings(path=str(folder), **settings)
    return start_of(build_backbone(Auto, made, labels, seed=0, empty=True), made)


def both_builds(folder, labels=LABELS):
    """The head as the client and as the server know it."""
    built = [build_backbone(Auto, ModelSettings(path=str(folder)), labels, seed=0, empty=e) for e in (0, 1)]
    heads = {head_of(model) for model in built}
    assert len(heads) == 1
    return built[0], heads.pop()


def test_a_head_of_the_same_classes_is_the_start(tmp_path):
    saved = classifier(tmp_path)
    built, head = both_builds(tmp_path)
    assert head.modules == ("classifier",)
    assert head.kept == HEAD
    model = AdapterModel(attach(built, LoraSettings()))
    model.write(initial_state(model.layout, 5))
    kept = model.module.get_base_model().classifier
    assert torch.equal(kept.weight, saved.classifier.weight)
    assert torch.equal(kept.bias, saved.classifier.bias)
    assert {n for n in model.layout.names if "lora" not in n} == {f"{name}.difference" for name in HEAD}


@pytest.mark.parametrize(
    ("config", "labels", "reason"),
    [
        ({"num_labels": 4}, LABELS, "has 4 outputs, the data have 3 classes"),
        ({"id2label": {0: "x", 1: "y", 2: "z"}}, LABELS, "of the classes x, y, z"),
        ({"id2label": {0: "c", 1: "b", 2: "a"}}, LABELS, "the same in another order, which task.class_names"),
    ],
)
def test_a_head_of_other_classes_is_drawn_anew_and_the_reason_is_known(tmp_path, config, labels, reason):
    classifier(tmp_path, **config)
    built, head = both_builds(tmp_path, labels)
    assert built.classifier.weight.shape == (3, 16)
    assert not head.kept
    assert reason in start(tmp_path, labels).reason


@pytest.mark.parametrize("names", [None, {0: "a", 1: "b", 2: "c"}])
def test_classes_without_names_are_taken_in_their_order(tmp_path, names):
    classifier(tmp_path, **({} if names is None else {"id2label": names}))
    assert start(tmp_path).head.kept == HEAD
    assert start(tmp_path).reason == ""


def test_a_layer_that_pretraining_left_out_belongs_to_the_head(tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(tmp_path)
    _, head = both_builds(tmp_path)
    assert head.modules == ("bert.pooler.dense", "classifier")
    assert not head.kept
    assert {name.partition(".")[0] for name in start(tmp_path).account.unread} == {"cls"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "model."])
def test_a_prefix_on_every_key_is_named_with_the_remedy(tmp_path, prefix):
    classifier(tmp_path)
    rewritten(tmp_path, lambda tensors: {prefix + name: value for name, value in tensors.items()})
    for empty in (False, True):
        with pytest.raises(
            ModelError, match=rf"lacks \d+ of the \d+.*begin with '{prefix}'.*remove that prefix"
        ):
            build_backbone(Auto, ModelSettings(path=str(tmp_path)), LABELS, seed=0, empty=empty)


def test_a_checkpoint_of_another_architecture_is_no_start(tmp_path):
    classifier(tmp_path)
    rewritten(tmp_path, lambda tensors: {f"transformer.h.{i}": v for i, v in enumerate(tensors.values())})
    with pytest.raises(ModelError, match=r"lacks .* of another architecture"):
        start(tmp_path)


@pytest.mark.parametrize(
    "lost", ["bert.encoder.layer.1.output.dense.weight", "bert.embeddings.LayerNorm.weight"]
)
def test_a_single_lost_weight_of_the_backbone_is_named(tmp_path, lost):
    classifier(tmp_path)
    rewritten(tmp_path, lambda tensors: {name: value for name, value in tensors.items() if name != lost})
    with pytest.raises(ModelError, match=rf"lacks 1 of the \d+ weights.*such as {lost}.*It is incomplete"):
        start(tmp_path)


def test_a_weight_of_another_size_is_named_with_both(tmp_path):
    classifier(tmp_path)
    with pytest.raises(ModelError, match=r"word_embeddings\.weight is 60 x 16, that of the model is 70 x 16"):
        start(tmp_path, config={"vocab_size": 70})


def test_more_layers_than_the_checkpoint_has_are_not_drawn_in_silence(tmp_path):
    classifier(tmp_path)
    with pytest.raises(
        ModelError, match=r"lacks 16 of .*encoder\.layer\.2.*config\.json is that of a larger"
    ):
        start(tmp_path, config={"num_hidden_layers": 3})


def test_shapes_are_the_same_in_every_form_of_a_checkpoint(tmp_path):
    saved = classifier(tmp_path / "one")
    expected = {name: tuple(value.shape) for name, value in saved.state_dict().items()}
    saved.save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    (tmp_path / "pickled").mkdir()
    torch.save(saved.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for form in ("one", "shards", "pickled"):
        found = shapes(str(tmp_path / form), None)
        assert {name: found[name] for name in expected if name in found} == found
        assert found.keys() >= {name for name, _ in saved.named_parameters()}


def test_a_lost_shard_and_a_torn_file_are_named(tmp_path):
    classifier(tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    shard = next((tmp_path / "shards").glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelError, match=rf"names {shard.name}, which are not there"):
        shapes(str(tmp_path / "shards"), None)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read as weights"):
        shapes(str(tmp_path), None)


def test_a_folder_without_weights_is_named_where_a_run_would_start(tmp_path):
    classifier(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="it has no weights"):
        start(tmp_path)


def test_of_a_hub_id_the_headers_are_enough(monkeypatch):
    tensors = {"x": SimpleNamespace(shape=[2, 3])}
    headers = SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})
    asked = []

    def fetched(repo, revision):
        asked.append((repo, revision))
        return headers

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", fetched)
    assert shapes("nobody/no-such-model", "main") == {"x": (2, 3)}
    assert asked == [("nobody/no-such-model", "main")]


def test_no_class_name_that_json_made_text_is_lost(tmp_path):
    classifier(tmp_path, id2label={0: "1", 1: "2", 2: "10"})
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "1", "1": "2", "2": "10"}
    assert start(tmp_path, ("1", "2", "10")).head.kept == HEAD


@pytest.mark.parametrize("torn", ['{"weight_map": {', "{}", "[]"])
def test_a_torn_index_is_named(tmp_path, torn):
    classifier(tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(torn)
    with pytest.raises(ModelError, match=r"index\.json names no files of weights"):
        shapes(str(tmp_path / "shards"), None)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_checkpoint_of_another_problem_is_trained_for_classes(tmp_path, problem):
    classifier(tmp_path, problem_type=problem)
    built, _ = both_builds(tmp_path)
    ids, labels = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]]), torch.tensor([0, 1, 2])
    found = built(input_ids=ids, labels=labels)
    assert torch.equal(found.loss, torch.nn.functional.cross_entropy(found.logits, labels))


def test_an_adapter_in_place_of_a_model_or_beside_one_is_named(tmp_path):
    saved = classifier(tmp_path / "model")
    attach(saved, LoraSettings()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"holds a PEFT adapter .*exported with --merge, or the backbone/"):
        start(tmp_path / "adapter")
    (tmp_path / "model" / "adapter_config.json").write_text(
        (tmp_path / "adapter" / "adapter_config.json").read_text()
    )
    with pytest.raises(ModelError, match=r"holds a PEFT adapter .*move the adapter away"):
        start(tmp_path / "model")


def test_a_pooler_that_is_defined_before_the_layers_is_a_part_of_the_head_as_well(tmp_path):
    config = {"model_type": "nomic_bert", **SMALL}
    saved = build_backbone(Auto, ModelSettings(pretrained=False, config=config), LABELS, seed=0)
    saved.save_pretrained(tmp_path)
    rewritten(
        tmp_path, lambda tensors: {n: v for n, v in tensors.items() if "pooler" not in n and n not in HEAD}
    )
    _, head = both_builds(tmp_path)
    assert head.modules == ("nomic_bert.pooler.dense", "classifier")


@pytest.mark.parametrize("cached", [False, True])
def test_shards_of_a_hub_id_that_are_not_cached_are_fetched(tmp_path, monkeypatch, cached):
    classifier(tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    whole = shapes(str(tmp_path / "shards"), None)

    def no_headers(*args, **options):
        raise OSError("no headers of safetensors")

    def hub(path, name, *, local_files_only, **options):
        file = tmp_path / "shards" / name
        here = cached and name.endswith(".json")  # the index alone, as after a download that was broken off
        return str(file) if file.is_file() and (here or not local_files_only) else None

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", no_headers)
    monkeypatch.setattr(checkpoint, "cached_file", hub)
    assert shapes("nobody/some-model", None) == whole

"""LoRA in federated models of other classes: their interface stays, and the laws of LoRA hold."""

import copy
import inspect
import pickle
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from clip_cases import IMAGES, KINDS, LABELS, MODELS, WORDS, Module, Net, Site, clip, values
from torch import nn

from fedsa_lora.clip import CLIPLoRAWrapper, LoRAConfig
from fedsa_lora.clip.layers import layers_with_lora
from fedsa_lora.errors import ConfigError, LayoutError, ModelError
from fedsa_lora.learning.memory import Tally
from fedsa_lora.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel

SMALL = LoRAConfig(r=2, lora_dropout=0)
METHODS = ("get_parameters", "set_parameters", "train_step", "evaluate")


def wrapped(federated, config=SMALL, components=None, **options):
    wrapper = CLIPLoRAWrapper(
        federated_clip_model=federated, lora_config=config, target_components=components, **options
    )
    assert wrapper.apply_lora_to_federated_model() is federated
    return wrapper


def trained(kind, config=SMALL, **options):
    wrapper = wrapped(kind(), config, **options)
    for _ in range(3):
        wrapper.train_step(IMAGES, LABELS)
    return wrapper


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_model_keeps_its_class_and_its_interface(kind):
    federated = kind()
    before = {name: inspect.signature(getattr(federated, name)) for name in METHODS}
    inner = federated if kind is Module else federated.net
    wrapper = wrapped(federated, components=["encoder"])
    assert type(federated) is kind
    assert (federated if kind is Module else federated.net) is inner is wrapper.module
    assert {name: inspect.signature(getattr(federated, name)) for name in METHODS} == before
    assert wrapper.train_step.__func__ is kind.train_step
    assert wrapper.evaluate.__func__ is kind.evaluate
    assert isinstance(inner.config.lr, float)
    with pytest.raises(TypeError):
        federated.get_parameters()  # as the original refuses it
    with pytest.raises(TypeError):
        federated.train_step(IMAGES, LABELS, 2.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("components", [["encoder"], ["classifier"], ["encoder", "classifier"]])
def test_its_own_step_trains_what_travels_and_nothing_else(kind, components):
    federated = kind()
    wrapper = wrapped(federated, components=components)
    state = {name: value.clone() for name, value in wrapper.module.state_dict().items()}
    losses = [federated.train_step(IMAGES, LABELS, scale=1.0) for _ in range(10)]
    moved = {n for n, v in wrapper.module.state_dict().items() if not torch.equal(v, state[n])}
    assert moved == set(wrapper.adapter.names)
    assert losses[-1] < losses[0]
    towers = [name for name in wrapper.adapter.names if name.startswith("backbone.")]
    assert bool(towers) == ("encoder" in components)
    heads = [name for name in wrapper.adapter.names if name.startswith("classifier")]
    assert heads
    assert all(".lora_" in name for name in heads) == ("classifier" in components)


@pytest.mark.parametrize("kind", KINDS)
def test_only_trainable_tensors_travel_and_setting_what_was_read_changes_no_bit(kind):
    wrapper = trained(kind)
    before = {name: value.clone() for name, value in wrapper.module.state_dict().items()}
    sent = wrapper.get_parameters({})
    assert type(sent) is (list if kind is Module else dict)
    assert all(type(v) is (np.ndarray if kind is Module else torch.Tensor) for v in list(sent)[:1]) or sent
    assert sum(value.size for value in values(sent)) == wrapper.adapter.trainable_parameters
    wrapper.set_parameters(sent)
    assert all(torch.equal(before[name], value) for name, value in wrapper.module.state_dict().items())
    zeros = [value * 0 for value in sent] if kind is Module else {n: v * 0 for n, v in sent.items()}
    wrapper.set_parameters(parameters=zeros)
    assert all((value == 0).all() for value in values(wrapper.get_parameters({})))
    assert any(value.any() for value in values(sent)), "what was read is a copy"
    base = {name for name in before if name not in wrapper.adapter.names}
    assert all(torch.equal(before[name], wrapper.module.state_dict()[name]) for name in base)


def test_the_original_is_asked_once_for_its_form():
    federated = wrapped(Site()).federated_model
    for _ in range(3):
        federated.get_parameters({})
    assert federated.asked == 1


@pytest.mark.parametrize("kind", [Site, Module])
def test_parameters_that_do_not_fit_are_refused_and_nothing_is_written(kind):
    wrapper = trained(kind)
    sent = wrapper.get_parameters({})
    names = wrapper.adapter.names
    good = dict(zip(names, values(sent), strict=True))
    one = names[-1]
    for wrong in (
        {name: value for name, value in good.items() if name != one},
        {**good, "other": good[one]},
        {**{name: value + 1 for name, value in good.items()}, one: np.zeros(7)},
        list(good.values())[1:],
        3,
    ):
        with pytest.raises(LayoutError):
            wrapper.set_parameters(wrong)
    after = values(wrapper.get_parameters({}))
    assert all(np.array_equal(a, b) for a, b in zip(after, good.values(), strict=True))


def test_arrays_that_are_not_writable_are_taken_without_a_warning():
    wrapper = trained(Module)
    sent = wrapper.get_parameters({})
    for value in sent:
        value.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        wrapper.set_parameters(sent)


def test_a_model_whose_methods_cannot_be_replaced_stays_as_it_was():
    @dataclass(frozen=True)
    class Frozen:
        model: Net

        def get_parameters(self):
            return list(self.model.state_dict().values())

    federated = Frozen(Net())
    before = [(name, value.requires_grad) for name, value in federated.model.named_parameters()]
    with pytest.raises(ModelError, match="save_only_trainable=False"):
        wrapped(federated)
    assert [(name, value.requires_grad) for name, value in federated.model.named_parameters()] == before
    wrapper = wrapped(federated, save_only_trainable=False)
    wrapper.trainable.write({name: value * 0 for name, value in wrapper.trainable.read().items()})
    assert not any(value.any() for value in wrapper.trainable.read().values())


@pytest.mark.parametrize("kind", KINDS)
def test_without_save_only_trainable_the_exchange_is_left_as_it_is(kind):
    federated = kind()
    wrapper = wrapped(federated, save_only_trainable=False)
    assert "get_parameters" not in vars(federated)
    sent = wrapper.get_parameters({})
    assert len(sent) == len(wrapper.module.state_dict()) > len(wrapper.adapter.names)
    wrapper.set_parameters(sent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_copy_of_a_model_exchanges_its_own_tensors(kind):
    federated = trained(kind).federated_model
    sent = federated.get_parameters({})
    other = copy.deepcopy(federated)
    other.train_step(IMAGES, LABELS)
    same = zip(values(federated.get_parameters({})), values(sent), strict=True)
    assert all(np.array_equal(one, two) for one, two in same)
    moved = zip(values(other.get_parameters({})), values(sent), strict=True)
    assert any(not np.array_equal(one, two) for one, two in moved)


def test_a_pickled_model_exchanges_its_own_tensors():
    federated = trained(Module).federated_model
    other = pickle.loads(pickle.dumps(federated))
    assert len(other.get_parameters({})) == len(federated.get_parameters({}))
    other.set_parameters([value * 0 for value in other.get_parameters({})])
    assert any(value.any() for value in federated.get_parameters({}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("components", [["encoder"], ["encoder", "classifier"]])
def test_merged_disabled_and_enabled(kind, components):
    base = kind().evaluate(IMAGES)
    wrapper = trained(kind, components=components)
    adapted = wrapper.evaluate(IMAGES)
    assert (adapted - base).abs().max() > 1e-3
    wrapper.disable_lora_layers()
    sent = values(wrapper.get_parameters({}))
    assert torch.equal(wrapper.evaluate(IMAGES), base)
    wrapper.disable_lora_layers()
    wrapper.enable_lora_layers()
    assert torch.equal(wrapper.evaluate(IMAGES), adapted)
    again = zip(values(wrapper.get_parameters({})), sent, strict=True)
    assert all(np.array_equal(one, two) for one, two in again)
    trainable = [n for n, p in wrapper.module.named_parameters() if p.requires_grad]
    assert tuple(trainable) == wrapper.adapter.names

    wrapper.disable_lora_layers()  # merging does not depend on it
    federated = wrapper.merge_and_unload()
    assert (federated.evaluate(IMAGES) - adapted).abs().max() < 1e-5
    assert not any(".lora_" in name or "modules_to_save" in name for name in wrapper.module.state_dict())
    plain = kind()
    assert len(federated.get_parameters({})) == len(plain.get_parameters({}))
    assert "get_parameters" not in vars(federated)
    assert all(parameter.requires_grad for parameter in wrapper.module.parameters())
    with pytest.raises(ModelError, match="apply_lora"):
        wrapper.enable_lora_layers()
    merged = federated.evaluate(IMAGES)
    again = wrapped(federated, components=components)  # LoRA anew, over what was merged
    assert torch.equal(again.evaluate(IMAGES), merged)


def test_biases_are_trained_and_travel_and_then_nothing_is_disabled():
    wrapper = trained(Site, LoRAConfig(r=2, bias="lora_only"))
    assert any(name.endswith("q_proj.base_layer.bias") for name in wrapper.get_parameters({}))
    with pytest.raises(ModelError, match="bias=none"):
        wrapper.disable_lora_layers()
    adapted = wrapper.evaluate(IMAGES)
    assert (wrapper.merge_and_unload().evaluate(IMAGES) - adapted).abs().max() < 1e-5


def test_optimizers_keep_their_groups():
    federated = Site()
    federated.train_step(IMAGES, LABELS)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1)
    federated.other = other
    wrapper = wrapped(federated)
    named = {id(value): name for name, value in wrapper.module.named_parameters()}
    first, second = ([named[id(v)] for v in g["params"]] for g in federated.optimizer.param_groups)
    assert first
    assert all(".lora_" in name for name in first)
    assert second
    assert all(name.startswith("classifier.modules_to_save") for name in second)
    assert len(other.param_groups[0]["params"]) == 1


def test_of_two_optimizers_each_steps_what_it_had_and_none_what_the_other_does():
    federated = Site()
    federated.optimizer = torch.optim.SGD(federated.net.backbone.parameters(), lr=0.1)
    federated.of_head = torch.optim.SGD(federated.net.classifier.parameters(), lr=0.5)
    wrapper = wrapped(federated)
    encoder, head = (
        {id(value) for group in each.param_groups for value in group["params"]}
        for each in (federated.optimizer, federated.of_head)
    )
    trained = {id(v): name for name, v in wrapper.module.named_parameters() if v.requires_grad}
    assert encoder.isdisjoint(head)
    assert encoder | head == set(trained)
    assert all(trained[value].startswith("classifier.modules_to_save") for value in head)


# Checkpointing


def _gradients(wrapper, loss) -> tuple[dict, int]:
    """Gradients of what is trained, and the most bytes alive in a step."""
    wrapper.module.zero_grad()
    torch.manual_seed(5)  # of dropout
    with Tally() as tally:
        loss().backward()
    return {n: p.grad for n, p in wrapper.module.named_parameters() if p.requires_grad}, tally.most


@pytest.mark.parametrize("towers", ["vision", "text", "both"])
@pytest.mark.parametrize("kind", MODELS)
def test_checkpointing_takes_less_memory_and_gives_the_same_gradients(kind, towers):
    wrapper = wrapped(MODELS[kind](), LoRAConfig(r=2, towers=towers))
    wrapper.module.train()
    texts, images = WORDS.repeat(16, 3), IMAGES.repeat(16, 1, 1, 1)

    def loss():
        if towers == "vision":
            return wrapper.get_image_features(images).pooler_output.square().sum()
        if towers == "text":
            return wrapper.get_text_features(texts).pooler_output.square().sum()
        return wrapper(input_ids=texts, pixel_values=images).logits_per_image.square().sum()

    def same_as(first):
        return {n for n, g in gradients.items() if not torch.allclose(g, first[n], atol=1e-6, rtol=1e-4)}

    plain, most = _gradients(wrapper, loss)
    assert all(gradient is not None for gradient in plain.values())
    wrapper.enable_gradient_checkpointing()
    wrapper.enable_gradient_checkpointing()  # twice is as once
    gradients, less = _gradients(wrapper, loss)
    assert same_as(plain) == set()
    assert less < 0.8 * most
    wrapper.disable_gradient_checkpointing()
    gradients, again = _gradients(wrapper, loss)
    assert same_as(plain) == set()
    assert again == most


def test_checkpointing_within_a_foreign_model():
    wrapper = wrapped(Site())
    _, most = _gradients(wrapper, lambda: wrapper.module.train()(IMAGES).sum())
    wrapper.enable_gradient_checkpointing()
    _, less = _gradients(wrapper, lambda: wrapper.module.train()(IMAGES).sum())
    assert less < most
    with warnings.catch_warnings(action="error"):
        wrapper.train_step(IMAGES, LABELS)
        wrapper.evaluate(IMAGES)  # without gradients nothing is to be saved


def test_checkpointing_in_evaluation_mode_is_not_silent():
    wrapper = wrapped(Site())
    wrapper.enable_gradient_checkpointing()
    with pytest.warns(UserWarning, match="evaluation mode"):
        wrapper.module.eval()(IMAGES)
    wrapper.disable_gradient_checkpointing()
    with warnings.catch_warnings(action="error"):
        wrapper.module(IMAGES)


def test_checkpointing_that_would_save_nothing_is_refused():
    with pytest.raises(ModelError, match="would save nothing"):
        wrapped(Site(), components=["classifier"]).enable_gradient_checkpointing()
    with pytest.raises(ModelError, match="EfficientNetLiteModel"):
        wrapped(convolutional()).enable_gradient_checkpointing()


def test_batch_norms_keep_their_statistics_until_lora_is_merged():
    wrapper = wrapped(convolutional())
    before = {name: value.clone() for name, value in wrapper.module.named_buffers()}
    assert before
    images = torch.randn(2, 3, 32, 32)
    wrapper.module.train()(images).pooler_output.sum().backward()
    assert all(torch.equal(before[name], value) for name, value in wrapper.module.named_buffers())
    pickle.dumps(wrapper.module)
    wrapper.merge_and_unload().train()(images)
    assert any(not torch.equal(before[name], value) for name, value in wrapper.module.named_buffers())


# Layers


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return EfficientNetLiteModel(EfficientNetLiteConfig())


def test_inferred_layers_of_clip_are_the_six_kinds_of_its_blocks():
    six = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    for towers, count in (("vision", 12), ("text", 12), ("both", 24)):
        layers = layers_with_lora(clip(), LoRAConfig(towers=towers), None)
        assert len(layers) == count
        assert {name.rpartition(".")[2] for name in layers} == six
        kinds = {name.partition("_")[0] for name in layers}
        assert kinds == ({"vision", "text"} if towers == "both" else {towers})


def test_inferred_layers_of_other_towers():
    bert = {name.rpartition(".")[2] for name in layers_of("dual", "text")}
    assert bert == {"query", "key", "value", "dense"}
    assert not any("pooler" in name for name in layers_of("dual", "text"))
    module = convolutional()
    found = [module.get_submodule(name) for name in layers_with_lora(module, LoRAConfig(), None)]
    assert len(found) > 20
    assert all(isinstance(layer, nn.Conv2d) and layer.groups == 1 for layer in found)
    assert {layer.kernel_size for layer in found} == {(1, 1)}


def layers_of(kind, towers, **settings):
    return layers_with_lora(MODELS[kind](), LoRAConfig(towers=towers, **settings), None)


def test_targets_that_are_named_are_looked_for_in_the_towers_alone():
    assert len(layers_of("clip", "vision", target_modules=["q_proj", "v_proj"])) == 4
    assert layers_of("clip", "both", target_modules=["layers.0.mlp.fc1"]) == [
        "text_model.encoder.layers.0.mlp.fc1",
        "vision_model.encoder.layers.0.mlp.fc1",
    ]
    assert len(layers_of("dual", "both", target_modules=["query", "q_proj"])) == 4
    with pytest.raises(ModelError, match="did you mean 'q_proj'"):
        layers_of("clip", "vision", target_modules=["q_porj", "v_proj"])
    with pytest.raises(ModelError, match="query"):
        layers_of("dual", "vision", target_modules=["query"])


def test_a_module_of_no_library_needs_names():
    module = nn.Sequential()
    module.add_module("body", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    module.add_module("head", nn.Linear(4, 2))
    with pytest.raises(ModelError, match="set target_modules"):
        wrapped(module)
    wrapper = wrapped(module, LoRAConfig(target_modules=["body.0"]))
    assert wrapper.adapter.layers == ("body.0",)
    assert wrapper.adapter.whole == ("head",)


def test_a_tower_that_is_not_there_is_named():
    module = nn.Sequential(clip().vision_model)
    for towers in ("text", "both"):
        with pytest.raises(ModelError, match="no text tower; set towers=vision"):
            wrapped(module, LoRAConfig(towers=towers))
    wrapped(module)


def test_a_component_without_layers_is_refused_and_the_model_stays_as_it_was():
    model = clip()
    before = [(name, value.requires_grad) for name, value in model.named_parameters()]
    with pytest.raises(ModelError, match="no classifier"):
        wrapped(model, components=["classifier"])
    federated = Site()
    with pytest.raises(ModelError, match="the classifier of Net has none"):
        wrapped(federated, LoRAConfig(target_modules=["q_proj"]), components=["encoder", "classifier"])
    with pytest.raises(ConfigError, match="encoder"):
        wrapped(federated, components=["encodr"])
    with pytest.raises(ModelError, match="did you mean 'classifier'"):
        wrapped(federated, classifier="clasifier")
    assert [(name, value.requires_grad) for name, value in model.named_parameters()] == before
    assert "get_parameters" not in vars(federated)


def test_names_that_peft_cannot_tell_apart_are_refused_and_the_model_stays_as_it_was():
    module = Module()
    module.backbone.classifier = nn.Linear(2, 2)
    before = [(name, value.requires_grad) for name, value in module.named_parameters()]
    with pytest.raises(ModelError, match=r"backbone\.classifier"):
        wrapped(module)
    assert [(name, value.requires_grad) for name, value in module.named_parameters()] == before
    assert "get_parameters" not in vars(module)


def test_a_model_gets_lora_once():
    federated = wrapped(Site()).federated_model
    with pytest.raises(ModelError, match="already"):
        wrapped(federated)
    with pytest.raises(ModelError, match=r"call apply_lora_to_federated_model\(\) first"):
        CLIPLoRAWrapper(Site()).merge_and_unload()


def test_the_module_of_a_federated_model_is_found_or_asked_for():
    class Several:
        def __init__(self):
            self.one, self.two = Net(), Net()

    with pytest.raises(ModelError, match="one, two"):
        wrapped(Several())
    several = Several()
    assert wrapped(several, attribute="two").module is several.two
    several = Several()
    several.model = several.one
    assert wrapped(several).module is several.one
    with pytest.raises(ModelError, match="has none"):
        wrapped(object())
    with pytest.raises(ModelError, match="attribute=lr"):
        wrapped(Site(), attribute="lr")


@pytest.mark.parametrize("answer", [3, {"a": "b"}, (value for value in ())])
def test_a_get_parameters_of_another_form_is_refused(answer):
    class Odd(Site):
        def get_parameters(self, config):
            return answer

    with pytest.raises(LayoutError, match="save_only_trainable=False"):
        wrapped(Odd()).get_parameters({})


def test_every_client_draws_the_same_start_from_the_seed():
    def start(seed):
        return [value.clone() for value in wrapped(Site(), seed=seed).trainable.read().values()]

    torch.manual_seed(1)
    one, two, other = start(0), start(0), start(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))

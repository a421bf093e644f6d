"""A start from an adapter that was trained before: an export predicts the same, and what does not fit
is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.learning.stock import save_backbone
from fedsa_lora.learning.training import predict
from fedsa_lora.server.build import skeleton
from fedsa_lora.settings import RunConfig

WORDS = ("experiment=smoke", "head=shared")


def exported(folder: Path, *words: str) -> np.ndarray:
    """Writes a run's model with random factors and head as an export does; returns what it predicts."""
    config = load([*WORDS, *words])
    model = build.model(config)
    rng = np.random.default_rng(1)
    values = {s.name: rng.normal(0, 0.3, s.shape).astype(np.float32) for s in model.layout}
    model.write(values)
    model.save_adapter(folder, values, "backbone")
    save_backbone(config.task.build_model(seed=config.seed), folder / "backbone")
    config.task.tokenizer.save_pretrained(str(folder / "backbone"))
    return predict(model, config.task, config.task.load_client("0").test, config.train)


def started(folder: Path, *words: str) -> RunConfig:
    """A run that starts from an export in a folder, over its backbone, unless the words have others."""
    given = {"path": f"{folder}/backbone", "tokenizer": f"{folder}/backbone", "adapter": folder}
    return load([*WORDS, "model=minilm", *[f"model.{key}={value}" for key, value in given.items()], *words])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "export"
    return folder, exported(folder)


@pytest.mark.parametrize("pooling", [pytest.param("model", marks=pytest.mark.slow), "mean"])
def test_an_export_predicts_the_same_where_a_run_starts_from_it(tmp_path, pooling):
    expected = exported(tmp_path, f"model.pooling={pooling}")
    config = started(tmp_path)
    bench = build.workbench(config)
    bench.model.write(bench.initial)
    found = predict(bench.model, config.task, bench.data("0").test, config.train)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    server = skeleton(config).initial(config.seed, config.head.row_norm)
    assert server.keys() == bench.initial.keys()
    assert all(np.array_equal(server[name], value) for name, value in bench.initial.items())
    assert not any(name.endswith(".difference") for name in server)


def test_its_digest_is_what_a_stored_state_must_equal(adapter, tmp_path):
    folder, _ = adapter
    before = started(folder).experiment
    assert before == started(folder).experiment
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, other / "adapter_model.safetensors")
    changed = started(folder, f"model.adapter={other}")
    assert changed.experiment != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora.r=16"], r"has rank 8 on bert\.encoder.*, and the run 16; set lora\.r=8"),
        (["lora.alpha=8"], r"a scale of 2 on .*, and the run has 1; set lora\.alpha=16"),
        (["lora.rslora=true"], r"a scale of 2 .* lora\.rslora=false"),
        (
            ["lora.targets=attention"],
            r"it is on query, value, the run on .*key.*target_modules=\[query,value\]",
        ),
        (["lora.target_modules=[query]"], r"4 of its 8 tensors .* are not in the run"),
    ],
)
def test_an_adapter_that_does_not_fit_the_run_is_named(adapter, words, message):
    folder, _ = adapter
    with pytest.raises(ModelError, match=message):
        skeleton(started(folder, *words))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, "is of type VERA; expected LORA"),
        ({"use_dora": True}, "has use_dora=True; expected plain LoRA"),
        ({"init_lora_weights": "pissa"}, "over weights that were changed"),
        ({"base_model_name_or_path": "someone/other"}, r"another base, someone/other, and model\.path is"),
        ({"base_model_name_or_path": None}, "another base, none"),
    ],
)
def test_an_adapter_of_another_kind_or_base_is_named(adapter, tmp_path, changes, message):
    folder, _ = adapter
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    file = other / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        skeleton(started(folder, f"model.adapter={other}"))


def test_a_base_of_the_same_shapes_with_other_weights_is_another_one(adapter, tmp_path):
    folder, _ = adapter
    other = tmp_path / "other"
    exported(other, "seed=7")
    with pytest.raises(ModelError, match=r"another base, .*their .*weight differ.*: set model\.path"):
        skeleton(started(folder, f"model.adapter={other}"))
    copied = tmp_path / "copied"  # of the adapter's base, elsewhere
    shutil.copytree(folder / "backbone", copied)
    skeleton(started(folder, f"model.path={copied}"))


@pytest.mark.parametrize(
    ("lacking", "message"), [(True, "its head lacks classifier"), (False, "holds pooler.more")]
)
def test_tensors_of_a_head_that_are_missing_or_too_many_are_named(adapter, tmp_path, lacking, message):
    folder, _ = adapter
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tensors = load_file(other / "adapter_model.safetensors")
    if lacking:
        del tensors["base_model.model.classifier.bias"]
    else:
        tensors["base_model.model.pooler.more"] = torch.zeros(2)
    save_file(tensors, other / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=message):
        skeleton(started(folder, f"model.adapter={other}"))


def test_what_is_no_adapter_and_what_it_cannot_start_is_named(adapter, tmp_path):
    folder, _ = adapter
    with pytest.raises(ModelError, match=r"holds no PEFT adapter; expected adapter_config\.json"):
        skeleton(started(folder, f"model.adapter={folder}/backbone"))
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="truncated or corrupted; copy it again"):
        skeleton(started(folder, f"model.adapter={cut}"))
    for words, message in (
        (["lora=pissa"], "expected lora.variant=lora and lora.init=default"),
        (["lora=dora"], "expected lora.variant=lora and lora.init=default"),
        (["lora=none", "split=full"], "starts plain LoRA"),
        (["model.pretrained=false"], "set model.path to its base"),
        (["split=share_ab", "strategy=flora", "federation.ranks=[2,4]"], "expected federation.ranks=null"),
    ):
        with pytest.raises(ConfigError, match=message):
            started(folder, *words)

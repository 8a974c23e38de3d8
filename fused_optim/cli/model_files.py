"""The option ``--model``: a built-in name, a number of parameters, or a file with dimensions."""

import json
import re
from pathlib import Path
from typing import Any

from fused_optim.cli.models import MODELS, Llama, Shapes, gpt2

NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmbt]?)", re.IGNORECASE)
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
# values of model_type whose parameters are laid out as in a Llama
LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
BY_NAME = (
    "for other models give the shapes by name: "
    "json.dump({n: list(p.shape) for n, p in model.named_parameters()}, file)"
)
CONFIG_KEYS = ("model_type", "hidden_size", "n_embd")
LARGEST = 2**63 - 1  # elements of a tensor


def read_model(text: str) -> Shapes:
    """Return the shapes of a model's parameters by name.

    Args:
        text: name in :data:`fused_optim.cli.models.MODELS`; a number of parameters, as ``"7B"``,
            ``"124M"`` or ``"1e9"``, which become one tensor; or the path of a JSON file:
            ``config.json`` of a transformers model, a list of shapes, or shapes by name.

    Raises:
        ValueError: it is none of them, or the file cannot be used; the message says what to do.
    """
    if text.lower() in MODELS:
        model = MODELS[text.lower()]
        return model.shapes(model.layers)
    number = NUMBER.fullmatch(text)
    if number is not None and not Path(text).exists():
        size = round(float(number[1]) * FACTORS[number[2].lower()])
        if not 1 <= size <= LARGEST:
            raise ValueError(f"the number of parameters must be in [1, 2**63), got {text}")
        return {"weight": (size,)}
    path = Path(text)
    if not path.is_file() and path.suffix != ".json":
        raise ValueError(
            f"must be one of {', '.join(MODELS)}; a number of parameters such as 7B; or a JSON "
            f"file, got {text!r}"
        )
    return read_file(path)


def read_file(path: Path) -> Shapes:
    """Return the shapes in a JSON file: a ``config.json``, a list of shapes, or shapes by name.

    Raises:
        ValueError: the file cannot be read or used.
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        return read_document(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_document(document: Any) -> Shapes:
    """Return the shapes in the content of a JSON file.

    Raises:
        ValueError: it has another form.
    """
    if isinstance(document, list):
        document = {f"parameter_{index}": shape for index, shape in enumerate(document)}
    if not isinstance(document, dict):
        raise ValueError("must be a config.json, a list of shapes, or shapes by parameter name")
    if not document:
        raise ValueError("must have parameters, and is empty")
    # a shape is a list, so a parameter may well have one of these names
    is_config = any(not isinstance(document.get(key, []), list) for key in CONFIG_KEYS)
    return read_config(document) if is_config else read_shapes(document)


def is_shape(value: Any) -> bool:
    """Return True for a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(type(side) is int and side >= 0 for side in value)


def read_shapes(document: dict[str, Any]) -> Shapes:
    """Return shapes by name.

    Raises:
        ValueError: a value is not a shape.
    """
    for name, shape in document.items():
        if not is_shape(shape):
            raise ValueError(
                f"the shape of {name!r} must be a list of integers >= 0, got {shape!r}"
            )
    return {name: tuple(shape) for name, shape in document.items()}


def read_config(config: dict[str, Any]) -> Shapes:
    """Return the parameters of the model that a ``config.json`` of transformers describes.

    Raises:
        ValueError: the type of the model is unknown, or a dimension is missing.
    """
    kind = config.get("model_type", "llama" if "hidden_size" in config else "gpt2")
    if kind == "gpt2":
        inner = config.get("n_inner")
        return gpt2(
            whole(config, "n_layer"),
            whole(config, "n_embd"),
            whole(config, "vocab_size"),
            whole(config, "n_positions"),
            None if inner is None else whole(config, "n_inner"),
        )
    if kind not in LLAMA_TYPES:
        known = ", ".join(("gpt2", *LLAMA_TYPES))
        raise ValueError(f"model_type must be one of {known}, got {kind!r}; {BY_NAME}")
    return read_llama(config, kind).shapes()


def read_llama(config: dict[str, Any], kind: str) -> Llama:
    """Return the dimensions of a decoder with the layout of Llama.

    Raises:
        ValueError: a dimension is missing, or there are biases that the type does not always have.
    """
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} must be false, got {config[key]!r}; {BY_NAME}")
    width, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    size = width // heads if config.get("head_dim") is None else whole(config, "head_dim")
    # Llamas before the second lack the key
    grouped = kind != "llama" or config.get("num_key_value_heads") is not None
    kv_heads = whole(config, "num_key_value_heads") if grouped else heads
    return Llama(
        layers=whole(config, "num_hidden_layers"),
        width=width,
        hidden=whole(config, "intermediate_size"),
        queries=heads * size,
        keys=kv_heads * size,
        vocabulary=whole(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        bias=kind == "qwen2",
        head_norm=size if kind == "qwen3" else 0,
    )


def whole(config: dict[str, Any], key: str) -> int:
    """Return a dimension.

    Raises:
        ValueError: it is missing, or not a whole number above 0.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        found = "it is missing" if key not in config else f"got {value!r}"
        raise ValueError(f"{key} must be a whole number >= 1: {found}")
    return value

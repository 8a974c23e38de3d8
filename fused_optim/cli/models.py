"""Names and shapes of the parameters of well-known models, from their dimensions.

``MODELS`` has them by name. The command line also takes other models: ``model_files.py``.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # by the name of the parameter


class Model(NamedTuple):
    """A model whose layers may be fewer than published.

    Attributes:
        shapes: function from a number of layers to the shapes.
        layers: number of layers of the whole model; 0 if it cannot be cut.
    """

    shapes: Callable[[int], Shapes]
    layers: int = 0


def count_elements(shapes: Shapes) -> int:
    """Return the number of elements of all parameters."""
    return sum(map(prod, shapes.values()))


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    """Return a weight, and its bias unless there is none."""
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return {**shapes, f"{name}.bias": (outputs,)} if bias else shapes


def norm(name: str, width: int) -> Shapes:
    """Return the gain and the bias of a layer norm or batch norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def projection(name: str, inputs: int, outputs: int) -> Shapes:
    """Return a weight and its bias in the layout of GPT-2: the inputs come first."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def gpt2(
    layers: int = 12,
    width: int = 768,
    vocabulary: int = 50257,
    positions: int = 1024,
    inner: int | None = None,
) -> Shapes:
    """Return a GPT-2, whose embedding is also its head."""
    inner = inner or 4 * width
    shapes: Shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (positions, width)}
    for layer in range(layers):
        block = f"h.{layer}"
        shapes |= norm(f"{block}.ln_1", width)
        shapes |= projection(f"{block}.attn.c_attn", width, 3 * width)
        shapes |= projection(f"{block}.attn.c_proj", width, width)
        shapes |= norm(f"{block}.ln_2", width)
        shapes |= projection(f"{block}.mlp.c_fc", width, inner)
        shapes |= projection(f"{block}.mlp.c_proj", inner, width)
    return shapes | norm("ln_f", width)


class Llama(NamedTuple):
    """Dimensions of a Llama, or of a decoder with its layout (Mistral, Qwen2, Qwen3).

    Attributes:
        layers: number of decoder layers.
        width: features of the hidden states.
        hidden: features within the MLP.
        queries: features of all heads of the queries.
        keys: features of all heads of the keys, and of the values.
        vocabulary: number of tokens.
        tied: True if the embedding is also the head.
        bias: True if queries, keys and values have a bias, as in Qwen2.
        head_norm: features of the norms of each head's queries and keys, as in Qwen3; 0 for none.
    """

    layers: int
    width: int
    hidden: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool = False
    bias: bool = False
    head_norm: int = 0

    def shapes(self) -> Shapes:
        """Return the parameters in the order and with the names of transformers."""
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for layer in range(self.layers):
            shapes |= self.block(f"model.layers.{layer}")
        shapes["model.norm.weight"] = (self.width,)
        return shapes if self.tied else shapes | {"lm_head.weight": (self.vocabulary, self.width)}

    def block(self, name: str) -> Shapes:
        """Return one decoder layer."""
        attention = f"{name}.self_attn"
        shapes = linear(f"{attention}.q_proj", self.queries, self.width, self.bias)
        shapes |= linear(f"{attention}.k_proj", self.keys, self.width, self.bias)
        shapes |= linear(f"{attention}.v_proj", self.keys, self.width, self.bias)
        shapes |= linear(f"{attention}.o_proj", self.width, self.queries, bias=False)
        if self.head_norm:
            shapes[f"{attention}.q_norm.weight"] = (self.head_norm,)
            shapes[f"{attention}.k_norm.weight"] = (self.head_norm,)
        for part in ("gate_proj", "up_proj"):
            shapes |= linear(f"{name}.mlp.{part}", self.hidden, self.width, bias=False)
        shapes |= linear(f"{name}.mlp.down_proj", self.width, self.hidden, bias=False)
        shapes[f"{name}.input_layernorm.weight"] = (self.width,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (self.width,)
        return shapes


def vit(layers: int, width: int, patch: int = 16, image: int = 224) -> Shapes:
    """Return a ViT of torchvision, for 1000 classes."""
    shapes: Shapes = {
        "class_token": (1, 1, width),
        "conv_proj.weight": (width, 3, patch, patch),
        "conv_proj.bias": (width,),
        "encoder.pos_embedding": (1, (image // patch) ** 2 + 1, width),
    }
    for layer in range(layers):
        block = f"encoder.layers.encoder_layer_{layer}"
        shapes |= norm(f"{block}.ln_1", width)
        shapes[f"{block}.self_attention.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.self_attention.in_proj_bias"] = (3 * width,)
        shapes |= linear(f"{block}.self_attention.out_proj", width, width)
        shapes |= norm(f"{block}.ln_2", width)
        shapes |= linear(f"{block}.mlp.0", 4 * width, width)
        shapes |= linear(f"{block}.mlp.3", width, 4 * width)
    return shapes | norm("encoder.ln", width) | linear("heads.head", 1000, width)


def convolution(name: str, outputs: int, inputs: int, size: int) -> Shapes:
    """Return the weight of a convolution without a bias."""
    return {f"{name}.weight": (outputs, inputs, size, size)}


def resnet50_body() -> Shapes:
    """Return ResNet-50 of torchvision without its classifier."""
    shapes = convolution("conv1", 64, 3, 7) | norm("bn1", 64)
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for index in range(blocks):
            block = f"layer{stage}.{index}"
            shapes |= convolution(f"{block}.conv1", width, inputs, 1) | norm(f"{block}.bn1", width)
            shapes |= convolution(f"{block}.conv2", width, width, 3) | norm(f"{block}.bn2", width)
            shapes |= convolution(f"{block}.conv3", 4 * width, width, 1)
            shapes |= norm(f"{block}.bn3", 4 * width)
            if index == 0:
                shapes |= convolution(f"{block}.downsample.0", 4 * width, inputs, 1)
                shapes |= norm(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    return shapes


def resnet50() -> Shapes:
    """Return ResNet-50 of torchvision."""
    return resnet50_body() | linear("fc", 1000, 2048)


LLAMAS = {
    "llama-7b": Llama(32, 4096, 11008, 4096, 4096, 32000),
    "llama-13b": Llama(40, 5120, 13824, 5120, 5120, 32000),
    "llama-3.2-1b": Llama(16, 2048, 8192, 2048, 512, 128256, tied=True),
    "llama-3.1-8b": Llama(32, 4096, 14336, 4096, 1024, 128256),
    "llama-3.1-70b": Llama(80, 8192, 28672, 8192, 1024, 128256),
}


def llama(dimensions: Llama) -> Model:
    """Return a Llama as a model that may be cut to fewer layers."""
    return Model(lambda layers: dimensions._replace(layers=layers).shapes(), dimensions.layers)


MODELS = {
    "gpt2": Model(lambda layers: gpt2(layers), 12),
    "gpt2-medium": Model(lambda layers: gpt2(layers, 1024), 24),
    "gpt2-large": Model(lambda layers: gpt2(layers, 1280), 36),
    "gpt2-xl": Model(lambda layers: gpt2(layers, 1600), 48),
    **{name: llama(dimensions) for name, dimensions in LLAMAS.items()},
    "vit-b": Model(lambda layers: vit(layers, 768), 12),
    "vit-l": Model(lambda layers: vit(layers, 1024), 24),
    "resnet-50": Model(lambda _: resnet50()),
}

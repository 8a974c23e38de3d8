"""Small GPT over bytes: causal transformer, tied embedding, no biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 256


@dataclass(frozen=True)
class Shape:
    """Size of the model; the default has one million parameters."""

    context: int = 64
    layers: int = 4
    heads: int = 4
    width: int = 144


class Block(nn.Module):
    """Attention and a four times wider MLP, each on a normalised residual stream."""

    def __init__(self, shape: Shape) -> None:
        """Create the weights of one layer of ``shape``."""
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width, bias=False)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.mlp_norm = nn.LayerNorm(shape.width, bias=False)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map a residual stream [batch, time, width] to the next layer's."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """Next-byte model of ``shape``, built and scaled at the start as GPT-2 is.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3
    """

    def __init__(self, shape: Shape) -> None:
        """Create the weights from torch's global random state."""
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                additions = 2 * shape.layers if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(weight, std=(shape.width * additions) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map bytes [batch, time] to the next byte's logits [batch, time, VOCABULARY]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean cross entropy of predicting ``tokens[:, 1:]``, 0-dim, in nats a byte."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def sample(self, prompt: bytes, length: int, seed: int, temperature: float = 0.8) -> bytes:
        """Continue ``prompt`` by ``length`` random bytes; the same seed gives the same text."""
        # drawn on the CPU, so that a device changes nothing but rounding
        generator = torch.Generator().manual_seed(seed)
        text = list(prompt)
        device = self.embedding.weight.device
        for _ in range(length):
            window = torch.tensor([text[-self.shape.context :]], device=device)
            odds = (self(window)[0, -1].float().cpu() / temperature).softmax(0)
            text.append(int(torch.multinomial(odds, 1, generator=generator)))
        return bytes(text)

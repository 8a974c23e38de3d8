"""Tables of the memory, the traffic and the rounding error of each storage format.

``python -m benchmarks.formats`` writes ``formats.json`` and ``formats.md`` to benchmarks/results:
bytes a parameter of the presets; what small steps leave of a weight; and the error of an update
whose moments are kept in each of the small floats that were candidates for 8-bit states.
"""

import contextlib
import io
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fused_optim import SGD, AdamW, memory
from fused_optim.formats import codecs
from fused_optim.formats.codecs import Codec, Columns, ColumnSpec, MiniFloat
from fused_optim.formats.conversion import decode, encode
from fused_optim.formats.registry import WEIGHTS
from fused_optim.formats.stochastic_rounding import Noise
from fused_optim.formats.weights import load_weight

RESULTS = Path(__file__).parent / "results"
BF16 = torch.bfloat16
# name: dtype of the parameters, weights, states
PRESETS = {
    "plain (torch, fp32)": (torch.float32, "plain", "param"),
    "plain (torch, bf16)": (BF16, "plain", "param"),
    "master+fp32 (the usual 16)": (BF16, "master", "fp32"),
    "split+fp32": (BF16, "split", "fp32"),
    "split+bf16": (BF16, "split", "bf16"),
    "split+int8": (BF16, "split", "int8"),
    "split24+int8": (BF16, "split24", "int8"),
    "fp32 parameters, int8 states": (torch.float32, "plain", "int8"),
}
SIGNED = {
    "e2m5": MiniFloat(5, 3, 0x7E, True),
    "e3m4 (int8)": codecs.E3M4,
    "e4m3 (fp8)": codecs.E4M3,
}
UNSIGNED = {
    "e3m5": MiniFloat(5, 7, 0xFE, False),
    "e4m4 (int8)": codecs.E4M4,
    "e5m3": MiniFloat(3, 31, 0xFE, False),
    "e5m2 (fp8)": codecs.E5M2,
}
ELEMENTS, STEPS = 1 << 14, 200
SIGMAS = (0.0, 1.0, 2.0)
STEPS_HEAD = ["weights", "1,000 steps of decay by 1e-4 (exact: 0.9048)", "1,000 of 1e-5 (0.01)"]


def bytes_of_presets() -> list[dict[str, Any]]:
    """Count the bytes a parameter of AdamW in each preset, with clipping by the norm."""
    rows = []
    for name, (dtype, weights, states) in PRESETS.items():
        param = Parameter(torch.empty(1 << 24, dtype=dtype, device="meta"))
        with contextlib.redirect_stdout(io.StringIO()):
            found = memory([param], weights=weights, states=states, max_grad_norm=1.0)
        each = {part: getattr(found, part) / found.numel for part in (*found._fields[1:], "total")}
        rows.append({"preset": name, "dtype": str(dtype)[6:], **each})
    return rows


def small_steps() -> list[dict[str, Any]]:
    """Measure a weight of 1 after 1,000 steps of decay, and after 1,000 tiny steps."""
    rows = []
    for name in WEIGHTS:
        found = {"weights": name}
        for key, cls, options, gradient in (
            ("decayed", AdamW, {"lr": 1e-3, "weight_decay": 0.1}, 0.0),
            ("moved", SGD, {"lr": 1e-5}, 1.0),
        ):
            param = Parameter(torch.ones(4096, dtype=BF16))
            optimizer = cls([param], weights=name, backend="reference", **options)
            for _ in range(1000):
                param.grad = torch.full_like(param, gradient)
                optimizer.step()
            weight = load_weight(optimizer.state.get(param, {}), param).double()
            value = weight if key == "decayed" else 1.0 - weight
            found |= {key: value.mean().item(), f"{key}_std": value.std().item()}
        rows.append(found)
    return rows


def kept_in(small: MiniFloat | None) -> Callable[[Tensor], Tensor]:
    """Return a function that encodes and decodes a value in this format."""
    if small is None:
        return lambda value: value

    def store(columns: Columns, value: Tensor, noise: Noise | None) -> None:
        codecs._quantize(columns, value, noise, small)

    def load(columns: Columns, compute: torch.dtype) -> Tensor:
        return codecs._dequantize(columns, small)

    columns = (ColumnSpec(dtype=torch.uint8), ColumnSpec("_scale", torch.uint8, codecs.SCALE_BLOCK))
    codec = Codec(load, store, columns, keyed=True)
    step = 0

    def kept(value: Tensor) -> Tensor:
        nonlocal step
        step += 1  # other random bits in each step: they follow from the position
        moved = torch.roll(value, codecs.SCALE_BLOCK * step)
        back = decode(codec, encode(codec, moved, moved), torch.float32)
        return torch.roll(back, -codecs.SCALE_BLOCK * step)

    return kept


def error_of_updates(
    first: MiniFloat | None, second: MiniFloat | None, sigma: float
) -> dict[str, float]:
    """Compare Adam's update with encoded moments to the update with exact moments.

    Gradients are normal with a standard deviation of 1e-3 times a lognormal factor of their own;
    blocks mix such factors.
    """
    generator = torch.Generator().manual_seed(0)
    scale = 1e-3 * (sigma * torch.randn(ELEMENTS, generator=generator)).exp()
    m = v = kept_m = kept_v = torch.zeros(ELEMENTS)
    keep_m, keep_v = kept_in(first), kept_in(second)
    largest = exact_largest = error = power = 0.0
    for step in range(1, STEPS + 1):
        g = scale * torch.randn(ELEMENTS, generator=generator)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        kept_m, kept_v = 0.9 * kept_m + 0.1 * g, 0.999 * kept_v + 0.001 * g * g
        updates = []
        for mean, square in ((m, v), (kept_m, kept_v)):
            denom = (square / (1 - 0.999**step)).sqrt() + 1e-12
            updates.append(mean / (1 - 0.9**step) / denom)
        exact, found = updates
        largest = max(largest, found.abs().max().item())
        exact_largest = max(exact_largest, exact.abs().max().item())
        error += (found - exact).double().square().sum().item()
        power += exact.double().square().sum().item()
        kept_m, kept_v = keep_m(kept_m), keep_v(kept_v)
    return {"largest": largest / exact_largest, "rms": (error / power) ** 0.5}


def errors() -> list[dict[str, Any]]:
    """Measure every small float for one moment, with the other exact, and the chosen pairs."""
    choices: list[tuple[str, MiniFloat | None, MiniFloat | None]] = []
    choices += [(f"exp_avg in {name}", small, None) for name, small in SIGNED.items()]
    choices += [(f"exp_avg_sq in {name}", None, small) for name, small in UNSIGNED.items()]
    choices += [("states='int8'", codecs.E3M4, codecs.E4M4)]
    choices += [("states='fp8'", codecs.E4M3, codecs.E5M2)]
    return [
        {"kept": name, **{f"sigma {s:g}": error_of_updates(first, second, s) for s in SIGMAS}}
        for name, first, second in choices
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def written(facts: dict[str, Any]) -> str:
    """Return the page of results in Markdown."""
    parts = ("parameters", "gradients", "states", "total", "moved")
    presets = [[r["preset"], *(f"{r[p]:.2f}" for p in parts)] for r in facts["presets"]]
    steps = [
        [
            row["weights"],
            f"{row['decayed']:.4f} +- {row['decayed_std']:.4f}",
            f"{row['moved']:.5f} +- {row['moved_std']:.5f}",
        ]
        for row in facts["small steps"]
    ]
    columns = [f"sigma {s:g}" for s in SIGMAS]
    errors = [
        [r["kept"], *(f"{r[c]['largest']:.2f}x, {100 * r[c]['rms']:.1f} %" for c in columns)]
        for r in facts["errors"]
    ]
    return f"""# Storage formats

Python {facts["python"]}, torch {facts["torch"]}, {facts["date"]}, `{facts["command"]}`. Counted and
simulated, not timed.

## Bytes a parameter: AdamW with clipping by the norm

{table(["format", *parts], presets)}

`moved`: each column read and written once, the gradient read once, and once more for the norm.

## MiniFloat steps: a bf16 weight of 1

{table(STEPS_HEAD, steps)}

Mean and standard deviation of 4,096 elements. `stochastic` and `split24` are right in the mean,
and so is `kahan`, whose two bf16 have 17 bits.

## 8-bit moments: what became of Adam's update

{table(["moment", *columns], errors)}

Largest update beside the largest exact one, and the error's root mean square, over {STEPS} steps of
{ELEMENTS} elements whose gradients have lognormal scales of this sigma, mixed in blocks of
{codecs.SCALE_BLOCK}. Every candidate has a power of two for each block and is rounded
stochastically.
"""


def main() -> int:
    """Write the results."""
    warnings.simplefilter("ignore")
    facts = {
        "presets": bytes_of_presets(),
        "small steps": small_steps(),
        "errors": errors(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.formats",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "formats.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "formats.md").write_text(written(facts))
    print(written(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

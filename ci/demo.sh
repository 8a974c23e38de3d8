#!/usr/bin/env bash
# Train a small GPT with torch.optim and fused_optim, curve on curve: ci/demo.sh [OPTION...]
# The options are those of `python -m examples.gpt`; its files are relative to where this is called.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

bash "$root/ci/setup.sh" cpu,cli
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$root/.venv/bin/python" -m examples.gpt "$@"

#!/usr/bin/env bash
# Train a small GPT with torch.optim and fused_optim, curve on curve: ci/demo.sh [OPTION...]
# The options are those of examples/train_gpt.py; its files are relative to where this is called.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

bash "$root/ci/setup.sh" cpu,cli
exec "$root/.venv/bin/python" "$root/examples/train_gpt.py" "$@"

#!/usr/bin/env bash
# The trainers of docs/trainers.md, in .venv-trainers with pinned versions: ci/trainers.sh runs their
# tests, ci/trainers.sh ARGUMENT... runs Python there, as in ci/trainers.sh examples/trainers/ddp.py.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv-trainers/bin/python
install=("$python" -m pip install --quiet --disable-pip-version-check
    --constraint ci/constraints.txt --constraint ci/constraints-trainers.txt)
[ -x "$python" ] || "${PYTHON:-python3}" -m venv .venv-trainers
"${install[@]}" --editable ".[cpu]" pytest pytest-xdist \
    transformers accelerate lightning peft torchao spmd_types tyro
# whose own requirements are those of a whole training: data sets, logging services
"${install[@]}" --no-deps torchtitan

export HF_HUB_OFFLINE=1 # every model is made from its configuration
[ $# -eq 0 ] || exec "$python" "$@"
exec "$python" -m pytest integrations -n 2 --dist loadfile # each imports its framework once

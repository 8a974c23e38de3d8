#!/usr/bin/env bash
# Lint, types and every test. Triton chooses its interpreter at import, so what is interpreted is
# tested in a process of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

bash ci/setup.sh cpu,cli,recipes,bench,dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest tests --interpret -n 2
.venv/bin/python -m pytest -n 2

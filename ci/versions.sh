#!/usr/bin/env bash
# The kernels with each minor version of Triton that pyproject.toml allows: ci/versions.sh [VERSION...]
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || bash ci/setup.sh cpu,cli,recipes,bench,dev
exec .venv/bin/python ci/versions_run.py "$@"

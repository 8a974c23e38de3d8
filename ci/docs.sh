#!/usr/bin/env bash
# The documentation as a site in docs/_build, which can be read without the network: ci/docs.sh
# A warning is an error: a link to nowhere, a page that no navigation has, a docstring that is not parsed.
set -euo pipefail
cd "$(dirname "$0")/.."

bash ci/setup.sh cpu,docs
rm -rf docs/_build
.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going \
    -c docs/site -d docs/_build/.doctrees . docs/_build
echo "docs/_build/index.html"

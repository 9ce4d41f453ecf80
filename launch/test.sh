#!/usr/bin/env bash
# Checks the source and runs the tests: bash launch/test.sh [PYTEST_ARGUMENT ...]
#
# JOBS test files run at the same time (default: 2; each needs up to 5 GB of memory). With arguments, only the tests run.
# See launch/install.sh for PYTHON and VENV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh test,dev
bin=${VENV:-.venv}/bin
if (($# == 0)); then
  "$bin/ruff" check
  "$bin/ruff" format --check
  "$bin/basedpyright" --pythonpath "$bin/python"
fi
exec "$bin/python" slim_jax/runtime/allocator.py -m pytest --numprocesses "${JOBS:-2}" --dist loadfile --no-loadscope-reorder "$@"

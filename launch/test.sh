#!/usr/bin/env bash
# The tests: bash launch/test.sh [PYTEST_ARGUMENT ...]
#
# See launch/install.sh for PYTHON and VENV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh test
exec "${VENV:-.venv}/bin/python" -m pytest "$@"

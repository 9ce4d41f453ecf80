#!/usr/bin/env bash
# The tests: bash launch/test.sh [PYTEST_ARGUMENT ...]
#
# JOBS files of tests run side by side (2 unless set; up to 5 GB of memory each). See launch/install.sh for PYTHON and
# VENV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh test
exec "${VENV:-.venv}/bin/python" -m pytest --numprocesses "${JOBS:-2}" --dist loadfile "$@"

#!/usr/bin/env bash
# The demo: slims a small VGG on the 1,797 handwritten digits of scikit-learn. Takes minutes on a CPU.
#
#   bash launch/demo.sh [--config.FIELD=VALUE ...]
#
# The same command continues an interrupted run. See launch/install.sh for PYTHON and VENV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh
exec bash launch/huge_pages.sh "${VENV:-.venv}/bin/python" -m slim_jax.main --config=configs/digits.py --workdir=runs/digits "$@"

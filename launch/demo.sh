#!/usr/bin/env bash
# The demonstration: slims a small VGG on the 1,797 handwritten digits of scikit-learn, on the CPU, in minutes.
#
#   bash launch/demo.sh [--config.FIELD=VALUE ...]
#
# Run it again and it continues where it stopped, or says that it is done. See launch/install.sh for PYTHON and VENV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh
exec bash launch/huge_pages.sh "${VENV:-.venv}/bin/python" -m slim_jax.main --config=configs/digits.py --workdir=runs/digits "$@"

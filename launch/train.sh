#!/usr/bin/env bash
# One process on this machine, on all its GPUs or TPU cores, or on the CPU:
#
#   bash launch/train.sh --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]
#
# MODULE names another program (slim_jax.sweep, slim_jax.look). EXTRA names the extra of setup.cfg that JAX needs: cuda,
# tpu or '' (default: cuda if nvidia-smi finds a GPU). The same command continues an interrupted run. See
# launch/install.sh for PYTHON and VENV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh "${EXTRA-$(bash launch/extra.sh)}"
exec bash launch/huge_pages.sh "${VENV:-.venv}/bin/python" -m "${MODULE:-slim_jax.main}" "$@"

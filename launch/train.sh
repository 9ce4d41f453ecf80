#!/usr/bin/env bash
# One process on this machine, on all its GPUs or TPU cores, or on the CPU:
#
#   bash launch/train.sh --config=NAME --workdir=DIR [--config.FIELD=VALUE ...]
#
# NAME is an experiment or the path of a config; relative paths count from where you stand.
# MODULE names another program (slim_jax.sweep, slim_jax.look). EXTRA names the extra of setup.cfg that JAX needs:
# cuda12, cuda13, tpu or '' (default: what nvidia-smi says). The same command continues an interrupted run. See
# launch/install.sh for PYTHON and VENV.
set -euo pipefail
# shellcheck source=launch/here.sh
source "$(dirname "${BASH_SOURCE[0]}")/here.sh"

bash "$ROOT/launch/install.sh" "${EXTRA-$(bash "$ROOT/launch/extra.sh")}"
exec "$VENV/bin/python" -m "${MODULE:-slim_jax.main}" "$@"

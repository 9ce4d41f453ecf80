#!/usr/bin/env bash
# A study: the same run for several values of some fields, one after another on this machine:
#
#   bash launch/sweep.sh --config=configs/NAME.py --workdir=DIR --sweep=FIELD=VALUE,VALUE,... [--config.FIELD=VALUE ...]
#
# Ends with a table of all points. The same command continues an interrupted study. See slim_jax/sweep.py, and
# launch/train.sh for EXTRA. On a cluster: MODULE=slim_jax.sweep sbatch launch/slurm.sh ..., with the same flags.
set -euo pipefail
MODULE=slim_jax.sweep exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" "$@"

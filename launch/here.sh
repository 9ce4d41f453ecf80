#!/usr/bin/env bash
# Sets ROOT, the folder of slim_jax, and VENV, that of the environment (default: ROOT/.venv); the other scripts source it.
# Both become absolute. The scripts stay where you stand, so the paths that you give them count from there.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
export ROOT VENV
# Otherwise Python, started in the folder that holds a clone named slim_jax, takes the clone itself for the package.
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}

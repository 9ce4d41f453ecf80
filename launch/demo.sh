#!/usr/bin/env bash
# The demo: slims a small VGG on the 1,797 handwritten digits of scikit-learn. Takes minutes on a CPU.
#
#   bash launch/demo.sh [--config.FIELD=VALUE ...]
#
# It leaves everything in runs/digits, where you stand. The same command continues an interrupted run. See
# launch/install.sh for PYTHON and VENV.
set -euo pipefail
# shellcheck source=launch/here.sh
source "$(dirname "${BASH_SOURCE[0]}")/here.sh"

bash "$ROOT/launch/install.sh"
exec "$VENV/bin/python" -m slim_jax.main --config="$ROOT/configs/digits.py" --workdir=runs/digits "$@"

#!/usr/bin/env bash
# Makes a virtual environment with slim_jax in it: bash launch/install.sh [EXTRA]
#
# EXTRA is an extra of setup.cfg (test, cuda, tpu, gcs, onnx), or several (tpu,gcs); none by default.
# PYTHON names the interpreter (default: the first one from 3.11 on), VENV the folder (default: .venv).
# An existing environment is reused, and brought up to date when setup.cfg has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-}
venv=${VENV:-.venv}
stamp=$venv/setup${extra:+-$extra}.cfg  # the setup.cfg that was installed

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local python pythons=(python3 python3.12 python3.11 python3.13)
  [[ -z ${PYTHON:-} ]] || pythons=("$PYTHON")
  for python in "${pythons[@]}"; do
    if is_new_enough "$python"; then echo "$python"; return; fi
  done
  echo "slim_jax needs Python 3.11 or later; there is none among: ${pythons[*]}." \
    "Install one, or name it: PYTHON=/path/to/python3 bash launch/..." >&2
  return 1
}

if [[ ! -x $venv/bin/python ]]; then
  python=$(find_python)
  "$python" -m venv "$venv" || {
    echo "$python could not make $venv (on Debian and Ubuntu: apt install python3-venv)." >&2
    exit 1
  }
elif [[ -n ${PYTHON:-} ]]; then
  python=$(find_python)
  version='import sys; print("%d.%d" % sys.version_info[:2])'
  if [[ $("$python" -c "$version") != $("$venv/bin/python" -c "$version") ]]; then
    echo "$venv holds another Python than PYTHON=$PYTHON: remove it, or choose another folder with VENV=..." >&2
    exit 1
  fi
fi

if ! cmp -s setup.cfg "$stamp"; then
  echo "Installing slim_jax${extra:+[$extra]} in $venv ..."
  "$venv/bin/python" -m pip install --quiet --editable ".${extra:+[$extra]}"
  cp setup.cfg "$stamp"
fi

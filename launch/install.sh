#!/usr/bin/env bash
# Creates a virtual environment and installs slim_jax in it: bash launch/install.sh [EXTRA]
#
# EXTRA is an extra of setup.cfg beside `train`, which is always installed: dev, test, cuda12, cuda13, tpu, gcs, onnx, or
# several (tpu,gcs); none by default.
# PYTHON names the interpreter (default: the first of python3, python3.12, python3.11 and python3.13 that is 3.11 or
# later). VENV names the folder (default: .venv in the folder of slim_jax). An existing environment is reused, and updated
# if setup.cfg changed; one whose installation was interrupted is completed. SYSTEM_PACKAGES=1 lets a new one use the
# packages that the interpreter has.
set -euo pipefail
# shellcheck source=launch/here.sh
source "$(dirname "${BASH_SOURCE[0]}")/here.sh"
cd "$ROOT"

extra=${1:-}
venv=$VENV
stamp=$venv/setup${extra:+-$extra}.cfg  # a copy of the setup.cfg that was installed
begun=$venv/installing                  # there while something is installed, and after it was interrupted

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local python pythons=(python3 python3.12 python3.11 python3.13)
  [[ -z ${PYTHON:-} ]] || pythons=("$PYTHON")
  for python in "${pythons[@]}"; do
    if is_new_enough "$python"; then echo "$python"; return; fi
  done
  echo "slim_jax needs Python 3.11 or later, and none of these is: ${pythons[*]}." \
    "Install one, or give its path: PYTHON=/path/to/python3 bash launch/..." >&2
  return 1
}

again=()
if [[ -e $begun ]]; then
  echo "The last installation in $venv was interrupted, so everything is installed again."
  rm -rf "$venv"/lib/python3*/site-packages/pip{,-*}  # half of pip would be taken for all of it
  again=(--ignore-installed)
fi
if [[ ! -x $venv/bin/python || -e $begun ]]; then
  python=$(find_python)
  mkdir -p "$venv" && touch "$begun"
  "$python" -m venv ${SYSTEM_PACKAGES:+--system-site-packages} "$venv" || {
    echo "$python could not create $venv. On Debian and Ubuntu, run: apt install python3-venv" >&2
    exit 1
  }
elif [[ -n ${PYTHON:-} ]]; then
  python=$(find_python)
  version='import sys; print("%d.%d" % sys.version_info[:2])'
  if [[ $("$python" -c "$version") != $("$venv/bin/python" -c "$version") ]]; then
    echo "$venv has a different Python version than PYTHON=$PYTHON. Remove the folder, or choose another one with VENV=..." >&2
    exit 1
  fi
fi

if ! cmp -s setup.cfg "$stamp" || [[ -e $begun ]]; then
  touch "$begun"
  extras=[train${extra:+,$extra}]
  echo "Installing slim_jax$extras in $venv ..."
  "$venv/bin/python" -m pip install --quiet "${again[@]}" --editable ".$extras"
  cp setup.cfg "$stamp"
  rm "$begun"
fi

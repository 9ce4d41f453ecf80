#!/usr/bin/env bash
# Packs slim_jax, the packages that it needs and data sets, for a machine without a network:
#
#   bash launch/bundle.sh FILE.tar [DATASET ...]
#
# There, unpack FILE.tar and enter the folder slim_jax. After `source offline.sh`, the scripts in launch/ install from the
# bundle, and configs find its data: bash launch/train.sh --config=NAME --workdir=DIR --budget=20m
#
# DATASET is a folder of DATA, the directory of TFDS (default: $TFDS_DATA_DIR or ~/tensorflow_datasets), such as cifar10
# or cifar10/3.0.2. EXTRA names the extra of setup.cfg that JAX needs there: cuda12, cuda13, tpu (default: none). PYTHON_VERSION
# is that of the other machine (default: that of the environment). WITHOUT_JAX=1 packs neither JAX nor what belongs to an
# accelerator: the environment is then made over the packages that the machine has. See launch/install.sh for PYTHON and
# VENV.
set -euo pipefail
# shellcheck source=launch/here.sh
source "$(dirname "${BASH_SOURCE[0]}")/here.sh"

file=${1:?usage: bash launch/bundle.sh FILE.tar [DATASET ...]}
shift
data=${DATA:-${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}}
for name in "$@"; do
  [[ -d $data/$name ]] || { echo "$data has no data set $name. Set DATA to the directory of TFDS" >&2; exit 1; }
done
bash "$ROOT/launch/install.sh"
python=$VENV/bin/python
version=${PYTHON_VERSION:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
to=$work/slim_jax
mkdir -p "$to/wheels"

# The project as it stands, without what is ignored.
(cd "$ROOT" && if git rev-parse --git-dir >/dev/null 2>&1; then
  git ls-files -z --cached --others --exclude-standard
else
  find . -path ./.venv -prune -o -type f -print0
fi | tar --null -T - -cf -) | tar -xf - -C "$to"

echo "Packages for Python $version ..."
download() {
  local machine platforms=()
  machine=$(uname -m)
  for platform in manylinux_2_{28,27,26,24,17,12,5} manylinux{2014,2010,1}; do
    platforms+=(--platform "${platform}_$machine")
  done
  "$python" -m pip download --quiet --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" --find-links "$to/wheels" --dest "$to/wheels" "$@"
}
# What has no wheel anywhere is built here; it is pure Python. The project itself is installed from its folder.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$to/wheels" promise "$ROOT"
download "slim_jax[train${EXTRA:+,$EXTRA}]" setuptools wheel
rm "$to"/wheels/slim_jax-*.whl
if [[ -n ${WITHOUT_JAX:-} ]]; then
  rm -f "$to"/wheels/{jax,jaxlib,jax_*,nvidia_*,libtpu,numpy,scipy,ml_dtypes}-*.whl
fi

for name in "$@"; do
  mkdir -p "$to/data/$(dirname "$name")"
  cp -RL "$data/$name" "$to/data/$name"
done
cat >"$to/offline.sh" <<END
# Lets pip install from this folder alone, and slim_jax find the data in it: source offline.sh
here=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
export PIP_NO_INDEX=1 PIP_FIND_LINKS=\$here/wheels TFDS_DATA_DIR=\$here/data
${WITHOUT_JAX:+export SYSTEM_PACKAGES=1}
END
mkdir -p "$(dirname "$file")"
tar -cf "$file" -C "$work" slim_jax
echo "$file: $(du -m "$file" | cut -f1) MB, of which packages $(du -sm "$to/wheels" | cut -f1) MB"

#!/usr/bin/env bash
# Writes where this repository is into the badges, the notebook and the Kubernetes job: bash launch/address.sh OWNER/NAME
#
# Once, when it has a place on GitHub. Without an argument it takes that of the remote `origin`.
set -euo pipefail
# shellcheck source=launch/here.sh
source "$(dirname "${BASH_SOURCE[0]}")/here.sh"

place=${1:-$(git -C "$ROOT" remote get-url origin | sed -E 's#^.*github\.com[:/]##; s#\.git$##')}
[[ $place =~ ^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$ ]] || { echo "$place is not OWNER/NAME on GitHub" >&2; exit 1; }
for file in README.md launch/README.md launch/colab.ipynb launch/kubernetes.yaml; do
  sed -E "s#OWNER/slim_jax#$place#g; s#--depth 1 REPOSITORY #--depth 1 https://github.com/$place #" "$ROOT/$file" >"$ROOT/$file.new"
  mv "$ROOT/$file.new" "$ROOT/$file"
done

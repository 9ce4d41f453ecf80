#!/usr/bin/env bash
# A Cloud TPU: one machine, or a slice of several whose hosts train together.
#
#   bash launch/tpu.sh create  NAME             creates the TPU
#   bash launch/tpu.sh install NAME             copies the committed files to all hosts and installs slim_jax there
#   bash launch/tpu.sh run     NAME --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]
#   bash launch/tpu.sh delete  NAME             deletes the TPU; until then you pay for it
#
# Relative paths count from where you stand: a config that is a file here is copied to the hosts. DIR counts from the
# folder `work` of each host.
#
# ZONE (default us-central2-b), TYPE (v4-8) and VERSION (tpu-ubuntu2204-base) choose place, hardware and image. PROJECT
# defaults to that of gcloud. See launch/train.sh for MODULE. All hosts of a slice must see DIR: use gs://BUCKET/PATH or a
# Filestore; a single host may use its own disk. The same `run` continues an interrupted run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,/^set /{/^# \?/s/^# \?//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
(($# >= 2)) || usage
action=$1 name=$2
shift 2
where=("--zone=${ZONE:-us-central2-b}")
[[ -z ${PROJECT:-} ]] || where+=("--project=$PROJECT")

tpu() { gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on_all_hosts() { tpu ssh "$name" --worker=all --command="$1"; }

case $action in
  create)
    tpu create "$name" --accelerator-type="${TYPE:-v4-8}" --version="${VERSION:-tpu-ubuntu2204-base}"
    ;;
  install)
    archive=$(mktemp -d)/slim_jax.tar.gz
    trap 'rm -r "$(dirname "$archive")"' EXIT
    git -C "$root" archive --prefix=slim_jax/ --output="$archive" HEAD
    tpu scp "$archive" "$name:" --worker=all
    on_all_hosts "tar xzf slim_jax.tar.gz && { python3.11 -c 'import venv, ensurepip' 2>/dev/null || { sudo apt-get \
update -q && sudo apt-get install -qy python3.11-venv; }; } && PYTHON=python3.11 bash slim_jax/launch/install.sh tpu,gcs"
    ;;
  run)
    arguments=()
    on_all_hosts 'mkdir -p work'
    for argument; do
      file=${argument#--config=}
      if [[ $argument == --config=* && -f $file ]]; then
        tpu scp "$file" "$name:work/" --worker=all
        argument=--config=$(basename "$file")
      fi
      arguments+=("$argument")
    done
    # Not in the folder that holds slim_jax, which Python would take for the package.
    on_all_hosts "cd work && ../slim_jax/.venv/bin/python -m ${MODULE:-slim_jax.main} --multihost$(printf ' %q' "${arguments[@]}")"
    ;;
  delete)
    tpu delete "$name" --quiet
    ;;
  *) usage ;;
esac

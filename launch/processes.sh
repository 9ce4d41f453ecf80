#!/usr/bin/env bash
# Several processes on this machine that train together. Each gets one GPU if there are at least COUNT of them:
#
#   bash launch/processes.sh COUNT --config=NAME --workdir=DIR [--config.FIELD=VALUE ...]
#
# See launch/train.sh for MODULE and EXTRA. One process, which launch/train.sh starts, also uses all GPUs.
set -euo pipefail
# shellcheck source=launch/here.sh
source "$(dirname "${BASH_SOURCE[0]}")/here.sh"

count=${1:?COUNT, the number of processes, is missing}
shift
bash "$ROOT/launch/install.sh" "${EXTRA-$(bash "$ROOT/launch/extra.sh")}"
python=$VENV/bin/python
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$count
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)

pids=()
for ((i = 0; i < count; i++)); do
  if ((gpus >= count)); then export CUDA_VISIBLE_DEVICES=$i; fi
  JAX_PROCESS_ID=$i "$python" -m "${MODULE:-slim_jax.main}" "$@" &
  pids+=($!)
done
# Each process saves a checkpoint and then exits.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

status=0
while [[ -n $(jobs -rp) ]]; do
  wait -n && code=0 || code=$?
  ((status)) || status=$code
  if ((code != 0 && code != 143)); then  # otherwise the others wait for it forever
    sleep 2  # time for the others to print their errors
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
done
exit "$status"

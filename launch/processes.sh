#!/usr/bin/env bash
# Several processes on this machine that train together, each with a GPU of its own where there are as many:
#
#   bash launch/processes.sh COUNT --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]
#
# MODULE and EXTRA are those of launch/train.sh, which one process needs instead: it uses all GPUs, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

count=${1:?how many processes}
shift
bash launch/install.sh "${EXTRA-$(bash launch/extra.sh)}"
python=${VENV:-.venv}/bin/python
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$count
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)

pids=()
for ((i = 0; i < count; i++)); do
  if ((gpus >= count)); then export CUDA_VISIBLE_DEVICES=$i; fi
  JAX_PROCESS_ID=$i bash launch/huge_pages.sh "$python" -m "${MODULE:-slim_jax.main}" "$@" &
  pids+=($!)
done
# They save, and end by themselves.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

status=0
while [[ -n $(jobs -rp) ]]; do
  wait -n && code=0 || code=$?
  ((status)) || status=$code
  if ((code != 0 && code != 143)); then  # the others would wait for it
    sleep 2  # and may have something to say first
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
done
exit "$status"

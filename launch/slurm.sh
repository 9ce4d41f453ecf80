#!/usr/bin/env bash
# A SLURM job on the GPUs of one or more nodes, with one process for each GPU:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=configs/NAME.py --workdir=DIR \
#     [--config.FIELD=VALUE ...]
#
# Put options of sbatch (--partition, --account, --time) before the script. Relative paths count from where you stand. All
# nodes must see DIR and the folder of slim_jax, which SLIM_JAX names if SLURM does not know where this script is.
# Two minutes before its time limit, or when it is preempted, the job saves a checkpoint and requeues itself.
# See launch/train.sh for MODULE and EXTRA.
#SBATCH --job-name=slim_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slim_jax-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?is not set: start this script with sbatch}"
# sbatch runs a copy of this script, which lies elsewhere.
script=$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' || true)
launch=${SLIM_JAX:+$SLIM_JAX/launch}
launch=${launch:-$(dirname "${script:-launch/slurm.sh}")}
[[ -f $launch/here.sh ]] || { echo "slim_jax is not in $launch/..: set SLIM_JAX to its folder" >&2; exit 1; }
# shellcheck source=launch/here.sh
source "$launch/here.sh"

bash "$ROOT/launch/install.sh" "${EXTRA-cuda12}"
status=0
srun --kill-on-bad-exit=1 "$VENV/bin/python" -m "${MODULE:-slim_jax.main}" "$@" || status=$?
if ((status == 143)); then  # stopped by SIGTERM after saving a checkpoint
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

#!/usr/bin/env bash
# A SLURM job on the GPUs of one or more nodes, with one process for each GPU:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=configs/NAME.py --workdir=DIR \
#     [--config.FIELD=VALUE ...]
#
# Put options of sbatch (--partition, --account, --time) before the script. All nodes must see DIR and this folder.
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
cd "${SLURM_SUBMIT_DIR:?is not set: start this script with sbatch, in the folder of slim_jax}"
# shellcheck source=launch/here.sh
source launch/here.sh

bash launch/install.sh "${EXTRA-cuda12}"
status=0
srun --kill-on-bad-exit=1 "$VENV/bin/python" -m "${MODULE:-slim_jax.main}" "$@" || status=$?
if ((status == 143)); then  # stopped by SIGTERM after saving a checkpoint
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

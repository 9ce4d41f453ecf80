#!/usr/bin/env bash
# A job on GPUs of one or more nodes of a SLURM cluster, a process for each GPU:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=configs/NAME.py --workdir=DIR \
#     [--config.FIELD=VALUE ...]
#
# Options of sbatch (--partition, --account, --time) stand before the script. DIR and this folder must be seen by all
# nodes. Before its time is over, or when it is preempted, the job saves and puts itself into the queue again.
# MODULE and EXTRA are those of launch/train.sh.
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
cd "${SLURM_SUBMIT_DIR:?start it with sbatch, in the folder of slim_jax}"

bash launch/install.sh "${EXTRA-cuda}"
status=0
srun --kill-on-bad-exit=1 "${VENV:-.venv}/bin/python" -m "${MODULE:-slim_jax.main}" "$@" || status=$?
if ((status == 143)); then  # stopped by SIGTERM, and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

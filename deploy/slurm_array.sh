#!/usr/bin/env bash
# A sweep without Ray: several `unmask run` on one store, which share the work.
#
#   sbatch --array 1-4 --gpus 1 deploy/slurm_array.sh cifar10_resnet20 --set seeds=5
#
# They may start and end at any time, and be more or fewer by then. The file system has to know
# locks of other nodes (NFS 4; Lustre mounted with `flock`).
#SBATCH --job-name unmask
#SBATCH --cpus-per-task 16
#SBATCH --time 24:00:00
#SBATCH --output unmask-%A-%a.log
set -euo pipefail

source .venv/bin/activate
export UNMASK_STORE=${UNMASK_STORE:-$PWD/store}
export OMP_NUM_THREADS=1
jobs=(--jobs "$SLURM_CPUS_PER_TASK")
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then jobs=(); fi # one process, with the GPU to itself
exec unmask run "$@" "${jobs[@]}"

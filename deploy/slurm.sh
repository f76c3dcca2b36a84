#!/usr/bin/env bash
# A sweep on nodes of a Slurm cluster: starts Ray on all of them, runs there, and ends with it.
#
#   sbatch --nodes 4 --gpus-per-node 1 deploy/slurm.sh cifar10_resnet20 --set seeds=5
#
# Submit it where you would run `unmask`: in the checkout with its .venv, on a file system that all
# nodes see. A job that ran out of its time, submitted again, goes on from there.
#SBATCH --job-name unmask
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 16
#SBATCH --time 24:00:00
#SBATCH --output unmask-%j.log
set -euo pipefail

source .venv/bin/activate
export UNMASK_STORE=${UNMASK_STORE:-$PWD/store}
export OMP_NUM_THREADS=1 RAY_ADDRESS

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # another job may be on the same node
RAY_ADDRESS=$head:$port

# What Slurm gives to this job, no more.
resources=(--num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --block)
on_head=(srun --nodes 1 --ntasks 1 --overlap --nodelist "$head")
"${on_head[@]}" ray start --head --port "$port" "${resources[@]}" &
until "${on_head[@]}" ray health-check --address "$RAY_ADDRESS" 2>/dev/null; do sleep 2; done
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes "$others" --ntasks "$others" --overlap --exclude "$head" \
        ray start --address "$RAY_ADDRESS" "${resources[@]}" &
fi

"${on_head[@]}" unmask run "$@" --backend ray

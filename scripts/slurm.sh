#!/bin/bash
# Trains one run as a job of Slurm, which goes on by itself after the time limit or a preemption:
#
#     sbatch scripts/slurm.sh CONFIG [SECTION.KEY=VALUE ...]
#
# It is to be submitted where `rnncls train CONFIG` would be started, with torchrun on the PATH and
# on a file system that all nodes share. Options of sbatch come before the script's name and win
# over those below. Processes on each node: one, or one for each of its GPUs; or
# RNNCLS_PROCESSES_PER_NODE. docs/distributed.md explains it.

#SBATCH --job-name=rnncls
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
# To this script alone (B:), and so long before the limit that the run can save.
#SBATCH --signal=B:USR1@120

set -u

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "usage: sbatch scripts/slurm.sh CONFIG [SECTION.KEY=VALUE ...]" >&2
  exit 2
fi

# The number of the job stays the same when it is queued again, and so leads back to the run.
name=$(basename "$1")
run=runs/${name%.*}/job-$SLURM_JOB_ID

# A run that was stopped before its first checkpoint begins again.
if compgen -G "$run/checkpoints/step-*.safetensors" > /dev/null; then
  words=(--resume "$run")
else
  words=("$@" --run-dir "$run")
fi

# Of an array, the number of the job may stand for all its elements.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi

# All nodes meet at the first one. Jobs that share it have different ports, with luck.
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit 1
port=$((20000 + SLURM_JOB_ID % 10000))

# A job that is queued again is another launch, so that it does not take the last one's end for its
# own.
srun torchrun \
  --nnodes "${SLURM_NNODES:-1}" \
  --nproc-per-node "${RNNCLS_PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$head:$port" \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  -m rnncls train "${words[@]}" &
step=$!

# A SIGTERM makes the run save and end. scancel sends it; srun would end the run with a SIGKILL.
# shellcheck disable=SC2329  # The traps call it.
stop() {
  scancel --signal=TERM "$job" || kill -TERM "$step"
}

# SIGUSR1: the limit is near. SIGTERM: the job is cancelled, or Slurm itself queues it again.
near_limit=
trap 'near_limit=yes; stop' USR1
trap stop TERM

# A signal ends `wait` before the step has ended.
while kill -0 "$step" 2> /dev/null; do
  wait "$step"
done
wait "$step"
code=$?

# The run may have come to its end just then. To be queued again ends this script, too.
if [ -n "$near_limit" ] && [ "$code" -ne 0 ]; then
  trap '' TERM
  scontrol requeue "$job"
fi
exit "$code"

#!/bin/bash
{{ options }}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{{ grace }}
# {{ description }}
# One process a GPU: under srun, jax gives a process the GPU of its SLURM_LOCALID and no other.
set -uo pipefail

arguments=(
  {{ arguments }}
)
# srun no longer takes this from sbatch (since Slurm 22.05).
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

srun --kill-on-bad-exit=1 {{ python }} -m vlm_jax.main "${arguments[@]}" &
step=$!
# USR1 comes {{ grace }} s before the time is up: the run saves, and the job queues again. A preempted job is queued
# again by Slurm itself, a cancelled one by nobody.
again=
trap 'again=1; kill -TERM "$step"' USR1
# The processes get TERM from Slurm themselves; of a second one a run would stop without saving.
trap : TERM
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?
if [[ -n $again && $code == 143 ]]; then scontrol requeue "$SLURM_JOB_ID" && exit; fi
exit "$code"

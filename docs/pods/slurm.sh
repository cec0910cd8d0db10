#!/bin/bash
#SBATCH --job-name=fedjax-fm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8      # a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120        # two minutes before the end: stops after the round
#SBATCH --requeue

# sbatch docs/pods/slurm.sh fedpm --full
# JAX reads the addresses of all processes from SLURM.
set -euo pipefail
study=${1:?the name of a study, see: fedjax-fm list}
shift
shared=${FEDJAX_FM_SHARED:-$HOME/fedjax_fm}
folder=$shared/runs/$study-${SLURM_JOB_ID:?start this with sbatch}
export JAX_COMPILATION_CACHE_DIR=$shared/programs

# The same job, queued again, goes on where it stopped.
if [[ -f $folder/config.json ]]; then
  srun --kill-on-bad-exit=1 fedjax-fm run --resume "$folder"
else
  srun --kill-on-bad-exit=1 fedjax-fm run "$study" --out "$folder" "$@"
fi

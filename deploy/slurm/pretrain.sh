#!/bin/bash
# Pretrain on 4 GPUs of one node of Jean Zay: copy, put your project in the place of "xxx", and `sbatch pretrain.sh`.
# Six minutes before the time is up the training writes its checkpoint and goes back into the queue, and on from there.
#SBATCH --job-name=redshelf-pretrain
#SBATCH --account=xxx@a100
#SBATCH --constraint=a100
#SBATCH --qos=qos_gpu_a100-t3
#SBATCH --time=20:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --hint=nomultithread
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@360
set -u
SHELF=${SHELF:-$SCRATCH/shelf}
REDSHELF=${REDSHELF:-redshelf}
OPTIONS=${OPTIONS:---objective masked --name vit --size base --steps 100000 --batch-size 2048}

if command -v module >/dev/null; then
    module purge
    module load arch/a100
    source "$WORK/redshelf/.venv/bin/activate"
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
told=0
# one process a GPU; they share out every batch
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" $REDSHELF pretrain --shelf "$SHELF" $OPTIONS &
step=$!
trap 'told=1; kill -USR1 "$step"' USR1
while true; do
    wait "$step"
    status=$?
    if [ "$told" -eq 0 ]; then break; fi
    told=0 # the signal ended the wait, not the step
done
if [ "$status" -eq 85 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # until SLURM ends this shell
fi
exit "$status"

#!/bin/bash
#SBATCH --job-name={{ name }}
#SBATCH --array={{ tasks }}{{ "%%%d" % at_once if at_once else "" }}
#SBATCH --output="{{ logs }}/%A_%a.out"
#SBATCH --open-mode=append
#SBATCH --requeue
{% for line in directives %}
#SBATCH {{ line }}
{% endfor %}
#SBATCH --ntasks=1
#SBATCH --signal=B:USR1@{{ signal_seconds }}
# One task of the plan. Some minutes before the time is up SLURM tells this shell; the step finishes its part and leaves
# with 85, and the task goes back into the queue, where it goes on from the receipts.
{% for line in setup %}
{{ line }}
{% endfor %}
set -u
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
told=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {{ command }} --task "$SLURM_ARRAY_TASK_ID"{{ options }} &
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

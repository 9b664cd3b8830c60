#!/bin/bash
# The whole study on Jean Zay: copy, put your project in the place of "xxx", and run it on a login node:
#     OUT=$SCRATCH/study DATA=$WORK/redshelf/data ./study.sh
# It submits the skies, then arrays of trainings, spaces and answers, then the report; each waits for the end of the one
# before, however that ended. What is done is not done again: the same command sends what a time limit cut short.
set -eu
OUT=${OUT:-$SCRATCH/study}
DATA=${DATA:-}
SIZE=${SIZE:-full}
TASKS=${TASKS:-32}
REDSHELF=${REDSHELF:-redshelf}
MODELS=${MODELS:-${DSDIR:-}/HuggingFace_Models}
# the sha256 of each model.safetensors, from the page of the model on the hub; without it a row reads "not verified", and
# the page withholds the sentence that answers the question
DINO=${DINO:-facebook/dino-vitb16}
DINO_SHA256=${DINO_SHA256:-}
DINOV2=${DINOV2:-facebook/dinov2-base}
DINOV2_SHA256=${DINOV2_SHA256:-}
CLIP=${CLIP:-openai/clip-vit-base-patch16}
CLIP_SHA256=${CLIP_SHA256:-}
CPU=${CPU:---account=xxx@cpu --qos=qos_cpu-t3 --cpus-per-task=8}
GPU=${GPU:---account=xxx@a100 --constraint=a100 --qos=qos_gpu_a100-t3 --gres=gpu:1 --cpus-per-task=8}
SETUP=${SETUP:-module purge; module load arch/a100; source "$WORK/redshelf/.venv/bin/activate"}

weights=
for given in "dino=$MODELS/$DINO:$DINO_SHA256" "dinov2=$MODELS/$DINOV2:$DINOV2_SHA256" "clip=$MODELS/$CLIP:$CLIP_SHA256"; do
    folder=${given#*=}
    folder=${folder%:*}
    if [ -d "$folder" ]; then
        weights="$weights --weights ${given%:}"
    else
        echo "$folder is not there: its row will read \"not measured\"" >&2
    fi
done
common="-o $OUT --size $SIZE$weights${DATA:+ --data $DATA}"

previous=
send() { # NAME RESOURCES TASKS OPTIONS of one stage
    local array=""
    [ "$3" -gt 1 ] && array="--array=0-$(($3 - 1))"
    previous=$(
        sbatch --parsable --job-name="study-$1" $2 $array --time=20:00:00 --hint=nomultithread --requeue \
            ${previous:+--dependency=afterany:$previous} --output="%x-%A-%a.out" <<SCRIPT
#!/bin/bash
$SETUP
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
srun $REDSHELF study $common --stage $1 --part \${SLURM_ARRAY_TASK_ID:-0}/$3 $4
SCRIPT
    )
    previous=${previous%%;*}
    echo "$1: job $previous"
}

send skies "$CPU" 1 "--processes 8"
send weights "$GPU" "$TASKS" "--processes 1 --device cuda"
send spaces "$GPU" "$TASKS" "--processes 1 --device cuda"
send cells "$CPU" "$TASKS" "--processes 8"
send report "$CPU" 1 ""

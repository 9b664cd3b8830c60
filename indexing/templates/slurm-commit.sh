#!/bin/bash
#SBATCH --job-name={{ name }}-commit
#SBATCH --output="{{ logs }}/commit-%j.out"
{% for line in directives %}
#SBATCH {{ line }}
{% endfor %}
#SBATCH --ntasks=1
# After the tasks have ended, however they did: commits the plan when every part is done, else sends the tasks that miss
# parts once more.
{% for line in setup %}
{{ line }}
{% endfor %}
set -eu
{{ command }} --commit --runner slurm

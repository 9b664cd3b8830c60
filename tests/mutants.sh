#!/usr/bin/env bash
# Change the modules whose numbers everything rests on in small ways, one at a time, and see whether their tests notice.
# What went unnoticed lies in build/mutants/MODULE.txt, each with what was changed; minutes a module.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD/build/mutants
rm -rf "$here" && mkdir -p "$here"
.venv/bin/python -m pip install --quiet --target "$here/tools" "mutmut==3.8.1" 2>"$here/pip.log" || { cat "$here/pip.log"; exit 1; }

mutate() { # MODULE TEST...
    local module=$1 folder name
    name=$(basename "$module" .py) folder=$here/$(basename "$module" .py)
    shift
    # mutmut calls functions by the path of their file: a package of real folders, where the checkout has links
    mkdir -p "$folder/redshelf" && cp -r service indexing models api "$folder/redshelf/"
    mkdir "$folder/tests" && cp tests/*.py "$folder/tests/"
    {
        echo '[tool.mutmut]'
        echo "source_paths = [\"redshelf\"]"
        echo "only_mutate = [\"redshelf/$module\"]"
        echo "pytest_add_cli_args_test_selection = [$(printf '"tests/%s.py", ' "$@")]"
        echo 'process_isolation = "forkserver"' # what a forked process inherits of Lance's threads never answers
        echo 'also_copy = ["tests"]'
        echo '[tool.pytest.ini_options]'
        echo 'addopts = "--import-mode=importlib"'
        echo 'pythonpath = ["tests", "."]'
    } >"$folder/pyproject.toml"
    (
        cd "$folder"
        export PYTHONPATH=$here/tools OMP_NUM_THREADS=1
        python=../../../.venv/bin/python
        $python -m mutmut run --max-children "${JOBS:-2}" >run.log 2>&1 || { tail -c 2000 run.log; exit 1; }
        $python -m mutmut results 2>/dev/null | sed -n 's/^ *\(\S*\): \(survived\|no tests\|timeout\|suspicious\).*/\1/p' |
            while read -r mutant; do $python -m mutmut show "$mutant" 2>/dev/null | grep -E '^(#|[-+] )' || true; done >"../$name.txt"
        echo "$module: $(tr '\r' '\n' <run.log | grep -ao '[0-9]*/[0-9]*  .*' | tail -n 1), unnoticed $(grep -c '^#' "../$name.txt" || true)"
    )
}

mutate models/metrics.py test_metrics test_density_scores
mutate models/shift.py test_shift test_ratios
mutate indexing/partition.py test_partition test_embed

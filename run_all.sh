#!/usr/bin/env bash
# Table 1 from a fresh checkout: on a machine with GPUs or Slurm the `paper` profile (CIFAR-100 is fetched if it is not there); elsewhere it
# says what that would take and runs the `smoke` profile. Options go to `python -m bench run`; --profile chooses another plan.
# Python: $KD_BENCH_PYTHON, else the active environment, .venv or python3 where it has the packages; otherwise .venv is made.
# Ctrl-C stops everything cleanly with exit code 130; the same command goes on from there.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
trap 'exit 130' INT
trap 'exit 143' TERM

. bench/python.sh
find_python torch torchvision safetensors msgspec pandas scipy matplotlib submitit tyro filelock jinja2 rich
if [ -z "$python" ]; then
    find_base
    echo "run_all.sh: installing the packages of pyproject.toml into .venv (PyTorch among them: some GB)"
    install_into "$base" .
    python=.venv/bin/python
fi
case "$python" in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
results=$PWD/results data=${KD_BENCH_DATA:-$PWD/data}
cd "$here" # so that paths among the options mean what they say

for option in "$@"; do
    case "$option" in
        --profile | --profile=*) exec "$python" -m bench run --results "$results" --data-root "$data" "$@" ;;
        -h | --help) exec "$python" -m bench run --help ;;
    esac
done
if { [ -z "${SLURM_JOB_ID:-}" ] && sinfo -h >/dev/null 2>&1; } || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    exec "$python" -m bench run --profile paper --download --results "$results" --data-root "$data" "$@"
fi
echo "run_all.sh: no GPU and no Slurm here. Table 1 on this machine would take, in"
if ! "$python" -m bench run --profile paper --dry-run --results "$results" --data-root "$data" | grep -E '^(total|  estimated):' | cut -c1-300; then
    echo "run_all.sh: what it would take cannot be told, for the reason above"
fi
echo "run_all.sh: so this is the smoke profile (embedded data); --profile paper runs Table 1 all the same"
exec "$python" -m bench run --profile smoke --results "$results" --data-root "$data" "$@"

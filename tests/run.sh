#!/usr/bin/env bash
# The one test command: ruff, then pytest with the arguments given, e.g. tests/run.sh -m 'not slow' or tests/run.sh tests/bench.
# Python: $KD_BENCH_PYTHON, else the active environment, .venv or python3 where it has the packages; otherwise .venv is made.
# Real data: KD_BENCH_DATA (folder that holds cifar-100-python) and KD_BENCH_TEACHER (a trained resnet56); tests that need them are skipped without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One thread per process: tests start processes of their own, and threads that spin for a shared core cost several times the work.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
export MPLBACKEND="${MPLBACKEND:-Agg}" PYTHONHASHSEED="${PYTHONHASHSEED:-0}" PYTHONUNBUFFERED=1

. bench/python.sh
find_python torch torchvision safetensors msgspec pandas scipy matplotlib submitit tyro filelock jinja2 rich pytest pytest_benchmark xdist hypothesis ruff
if [ -z "$python" ]; then
    find_base
    echo "tests/run.sh: no python with the packages; installing into .venv"
    install_into "$base" '.[test]'
    python=.venv/bin/python
fi

"$python" -m ruff check .
[ $# -gt 0 ] && exec "$python" -m pytest "$@"

# All of it, in three at once: what is timed, one round on one thread, its bounds being loose; what waits for Slurm and hardly computes; and
# the rest, each file in one of as many processes as there are cores and one more, since tests wait too. For figures to keep, run a file of
# tests/benchmarks by itself on a quiet machine.
printed=$(mktemp -d)
beside=()
trap 'kill "${beside[@]}" 2>/dev/null || true; rm -rf "$printed"' EXIT
KD_BENCH_ROUNDS="${KD_BENCH_ROUNDS:-1}" "$python" -m pytest tests/benchmarks --durations 10 >"$printed/benchmarks" 2>&1 &
beside+=($!)
"$python" -m pytest tests/slurm --durations 5 >"$printed/slurm" 2>&1 &
beside+=($!)
code=0
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
"$python" -m pytest -n "$((cores + 1))" --dist loadfile --no-loadscope-reorder --durations 50 --ignore tests/benchmarks --ignore tests/slurm || code=$?
for process in "${beside[@]}"; do wait "$process" || code=$?; done
cat "$printed/slurm" "$printed/benchmarks"
exit $code

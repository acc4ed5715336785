# Sourced at the top of the repository by run_all.sh, tests/run.sh and .ci/run.
# new_enough PYTHON: whether it runs and is 3.11 or newer.
new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
# find_base: sets `base` to an interpreter that .venv can be made with: $KD_BENCH_PYTHON, python3, python3.14 ... 3.11; exit code 2: there is none.
find_base() {
    for base in "${KD_BENCH_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        if [ -n "$base" ] && new_enough "$base"; then return; fi
    done
    echo "error: Python 3.11 or newer is needed and none was found; install one, or name it with KD_BENCH_PYTHON" >&2
    exit 2
}
# install_into PYTHON WHAT: makes .venv with that interpreter and installs WHAT ("." or ".[test]"); pip's warnings are left out, its errors are not.
# A .venv whose interpreter still serves keeps it and its packages; one whose interpreter is gone or too old is made anew.
install_into() {
    new_enough .venv/bin/python || "$1" -m venv --clear .venv
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
    .venv/bin/python -m pip install -q --disable-pip-version-check -e "$2" 2>&1 | { grep -v '^WARNING' || true; }
}
# find_python PACKAGE...: sets `python` to the first interpreter that is new enough and has the packages, empty where there is none:
# $KD_BENCH_PYTHON, the active environment's, .venv's, python3.
find_python() {
    local candidate
    python=""
    for candidate in "${KD_BENCH_PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" .venv/bin/python python3; do
        if [ -n "$candidate" ] && "$candidate" - "$@" <<'PY' >/dev/null 2>&1; then
import importlib.util
import sys

sys.exit(sys.version_info < (3, 11) or any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))
PY
            python=$candidate
            return
        fi
    done
}

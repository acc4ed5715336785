# Sourced at the top of the repository by run_all.sh, tests/run.sh and .ci/run.
# install_into PYTHON WHAT: makes .venv with that interpreter and installs WHAT ("." or ".[test]"); pip's warnings are left out, its errors are not.
install_into() {
    "$1" -m venv .venv
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

#!/usr/bin/env bash
# Lint, check the format and run all tests, in .venv (made and filled when needed).
#
#   bash tests/run.sh                        everything, in two processes side by side
#   bash tests/run.sh tests/test_cli.py -x   arguments go to pytest
#
# PYTHON chooses the interpreter for a new environment, VENV another place for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
bash examples/make_env.sh "$venv" requirements.txt requirements-onnx.txt \
    examples/requirements.txt tests/requirements.txt

"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
# One thread for each process: the tests use tiny models and start processes of their own.
export OMP_NUM_THREADS=1
[ $# -eq 0 ] || exec "$venv/bin/python" -m pytest "$@"

# The files of tests/ itself take about as long as all its folders. What the first process says is
# shown when both are done. With job control it may be interrupted, which some tests try.
set -m
log=$(mktemp)
"$venv/bin/python" -m pytest tests/test_*.py >"$log" 2>&1 &
trap 'kill $! 2>/dev/null || true; rm -f "$log"' EXIT
code=0
"$venv/bin/python" -m pytest tests/*/ || code=$?
wait $! || code=$?
cat "$log"
exit "$code"

#!/usr/bin/env bash
# Lint, check the format and run all tests, in .venv (made and filled when needed).
#
#   bash tests/run.sh                        everything
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
OMP_NUM_THREADS=1 exec "$venv/bin/python" -m pytest "$@"

#!/usr/bin/env bash
# Make a virtual environment and install requirement files into it, once for each state of a file.
#
#   bash examples/make_env.sh .venv requirements.txt tests/requirements.txt
#
# PYTHON chooses the interpreter that a new environment is made with (default: python3).
set -euo pipefail

venv=$1
shift
python=${PYTHON:-python3}

fail() {
    echo "make_env.sh: error: $*" >&2
    exit 2
}

require_python_310() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail \
        "$1 is $("$1" --version 2>&1); Python 3.10 or newer is needed. $2"
}

if [ ! -x "$venv/bin/python" ]; then
    command -v "$python" >/dev/null || fail \
        "no $python here; install Python 3.10 or newer, or set PYTHON to one"
    require_python_310 "$python" "Set PYTHON to a newer one, as in PYTHON=python3.12 bash $0"
    echo "making $venv with $("$python" --version)" >&2
    "$python" -m venv "$venv" || fail \
        "$python cannot make virtual environments; install its venv module" \
        "(Debian and Ubuntu: apt install python3-venv) or set PYTHON to another one"
fi
require_python_310 "$venv/bin/python" "Remove $venv and start again with PYTHON set to a newer one."
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || fail \
    "$venv has no pip; remove it and start again"

for requirements in "$@"; do
    [ -f "$requirements" ] || fail "no file $requirements"
    # A stamp named after the content: an edited file is installed again, an old one is not.
    stamp=$venv/.installed-$("$venv/bin/python" -c \
        'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:16])' \
        "$requirements")
    [ -e "$stamp" ] && continue
    echo "installing $requirements into $venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" || fail \
        "pip could not install $requirements (see above)"
    touch "$stamp"
done

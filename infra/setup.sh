#!/bin/sh
# Make .venv from pyproject.toml and the constraints. Does nothing when both are as they were.
set -eu
cd "$(dirname "$0")/.."
constraints="${CONSTRAINTS:-constraints-cpu.txt}"
stamp="$(cat pyproject.toml "$constraints" infra/setup.sh | sha256sum | cut -d' ' -f1)"
if [ -x .venv/bin/asearch ] && [ "$(cat .venv/asearch-setup 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
echo "setting up .venv (once; about 1 GB of packages) ..." >&2
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed; set PYTHON to one, e.g. PYTHON=python3.11 just setup" >&2
    exit 2
}
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
# torch first and by itself: no other requirement may choose its build.
.venv/bin/python -m pip install --quiet "$(grep '^torch==' "$constraints" || echo torch)"
.venv/bin/python -m pip install --quiet --constraint "$constraints" --editable '.[plot,otel,parquet,tensorboard,wandb,dev]'
echo "$stamp" > .venv/asearch-setup

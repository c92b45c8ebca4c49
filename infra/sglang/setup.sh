#!/bin/sh
# Make .venv-sglang: SGLang on CPU, in an environment of its own (about 3 GB). Does nothing when its requirements are as they were.
# With SGLANG_CACHE=DIR the environment lies in DIR and .venv-sglang is a link to it, so that other checkouts find it made.
# SGLANG_VENV names another place than .venv-sglang.
set -eu
cd "$(dirname "$0")/../.."
here=infra/sglang
venv="${SGLANG_VENV:-.venv-sglang}"
stamp="$(cat "$here/requirements.txt" "$here/sglang.txt" "$here/setup.sh" | sha256sum | cut -d' ' -f1)"
if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/asearch-setup" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
if [ -n "${SGLANG_CACHE:-}" ]; then
    mkdir -p "$SGLANG_CACHE"
    kept="$(cd "$SGLANG_CACHE" && pwd)/$(echo "$stamp" | cut -c1-16)"
    # One at a time: a second one finds it made. The lock is given up when this, and what it has started, ends.
    exec 9>"$kept.lock"
    flock -w 3600 9 || {
        echo "error: another set-up has held $kept.lock for an hour: end it, or remove the file" >&2
        exit 2
    }
    if [ "$(cat "$kept/asearch-setup" 2>/dev/null)" != "$stamp" ]; then
        SGLANG_CACHE='' SGLANG_VENV="$kept" sh "$here/setup.sh"
    fi
    rm -rf "$venv"
    ln -s "$kept" "$venv"
    exit 0
fi
python="${PYTHON:-python3}"
echo "setting up $venv (once; about 3 GB of packages) ..." >&2
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "error: SGLang's wheels are for Python 3.11 to 3.13; set PYTHON to one, e.g. PYTHON=python3.11 just test-sglang" >&2
    exit 2
}
if [ -L "$venv" ]; then rm "$venv"; fi
"$python" -m venv --clear "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
pip="$venv/bin/python -m pip install --quiet"
# torch first and by itself: no other requirement may choose its build. Where the CPU build is not at hand, from where it is published.
torch="$(grep '^torch==' "$here/sglang.txt")"
$pip "$torch" 2>/dev/null || $pip --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "$torch"
$pip --requirement "$here/requirements.txt"
# Their own requirements name a CUDA build of torch and its kernels. `pip check` complains of that, on purpose.
for package in $(grep -v -e '^#' -e '^torch==' "$here/sglang.txt"); do
    $pip --no-deps "$package"
done
echo "$stamp" > "$venv/asearch-setup"

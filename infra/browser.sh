#!/bin/sh
# The tests of the page drive the system's Chromium: find it, or install Debian's package where we may.
set -eu
for name in chromium chromium-browser google-chrome-stable; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing Chromium for the tests of the page (once) ..." >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
    exit 0
fi
echo "note: no Chromium found; the tests of the page are skipped. Install it: sudo apt-get install chromium" >&2

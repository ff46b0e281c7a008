#!/bin/sh
# Prints the newest Python on PATH that can make the project's environment; PYTHON=... names the only one to try.
set -u
candidates=${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3}
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
bare=

for candidate in $candidates; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c "$fits" 2>/dev/null || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$candidate"
        exit 0
    fi
    bare=${bare:-$candidate}
done

if [ -n "$bare" ]; then
    echo "$bare lacks the modules venv and ensurepip: install them (Debian and Ubuntu: apt install python3-venv)" >&2
else
    echo "neuroscope needs Python 3.11 to 3.14, and found none of these: $candidates. Install one" \
        "(Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python; any: uv python install 3.13)," \
        "or name it: make demo PYTHON=/path/to/python3.13" >&2
fi
exit 1

#!/usr/bin/env bash
# Print the path of a usable Python; exit 1 if there is none.
#   tools/find_python.sh          any supported one (3.11 to 3.13), $PYTHON and the oldest tested first
#   tools/find_python.sh 3.12     exactly that one
# Usable: it starts (a pyenv shim may not), and can make a virtual environment with pip in it.
set -u
wanted=${1:-}

usable() { # usable COMMAND: prints its real path
  "$1" - "$wanted" 2>/dev/null <<'PY'
import sys
import ensurepip, ssl, venv
have = "%d.%d" % sys.version_info[:2]
wanted = sys.argv[1]
if wanted and have != wanted or not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(1)
print(sys.executable)
PY
}

candidates=("${PYTHON:-}")
for version in ${wanted:-3.11 3.12 3.13}; do
  candidates+=("python$version")
  for path in "${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"/versions/"$version".*/bin/python; do
    candidates+=("$path")
  done
done
candidates+=(python3 python)
for candidate in "${candidates[@]}"; do
  [ -n "$candidate" ] || continue
  usable "$candidate" && exit 0
done
exit 1

#!/usr/bin/env bash
# All checks and all tests, from nothing: what has to be green before a change lands.
#   ./test.sh [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec </dev/null
./install.sh --dev
tools/check.sh
# Most tests wait for something most of the time: two at once take little more than half as long.
exec "${VENV:-.venv}/bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"

#!/usr/bin/env bash
# All checks and all tests, from nothing: what has to be green before a change lands.
#   ./test.sh [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec </dev/null
./install.sh --dev
tools/check.sh
exec "${VENV:-.venv}/bin/python" -m pytest "$@"

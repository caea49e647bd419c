#!/usr/bin/env bash
# Everything that can be said about the code without running it; stops at the first complaint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${VENV:-.venv}/bin

step() {
  echo "check: $1"
  shift
  "$@"
}

step "format" "$bin/ruff" format --check --quiet .
step "lint" "$bin/ruff" check --quiet .
step "types" "$bin/mypy" --no-error-summary
step "imports" "$bin/lint-imports" --no-cache
step "generated code" "$bin/python" tools/gen_proto.py --check
step "planted bugs" "$bin/python" tools/planted_bugs.py --check
step "architecture" "$bin/python" -m pytest -q tests/architecture

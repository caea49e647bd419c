#!/usr/bin/env bash
# On a fresh machine: install what is needed, then run one command of rustray.
#   ./start.sh demo              a head, two workers and a tour, on this machine
#   ./start.sh head [options]    a head node       (./start.sh head --help)
#   ./start.sh worker [options]  a worker node     (./start.sh worker --help)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "${1:-}" in
  "" | -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; [ $# -gt 0 ] || exit 2; exit 0 ;;
esac
"$here/install.sh"
exec "${VENV:-$here/.venv}/bin/rustray" "$@"

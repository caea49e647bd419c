#!/usr/bin/env bash
# Make or refresh the virtual environment: pinned versions, checked by their hashes.
#   ./install.sh           what head, worker, client and demo need
#   ./install.sh --dev     and what the tests and checks need
#   ./install.sh --bench   and the peers that `make bench` compares with (large)
# Environment: VENV (folder, default .venv), PYTHON (interpreter, default: found).
# Does nothing, fast, when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case "${1:-}" in
  "") sets=(base) ;;
  --dev) sets=(base dev) ;;
  --bench) sets=(base dev bench) ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
wanted=${sets[-1]}
venv=${VENV:-.venv}

contents() { # what the environment is made from; a moved checkout counts as another one
  printf '%s\n' "$PWD"
  cat "requirements/$1.txt" pyproject.toml install.sh
}
is_current() { [ -x "$venv/bin/rustray" ] && contents "$1" | cmp -s - "$venv/.installed-$1"; }

is_current "$wanted" && exit 0

mkdir -p "$venv"
if command -v flock >/dev/null; then # two ./start.sh at once: the second waits, then has nothing to do
  exec 9>"$venv.lock"
  flock 9
  is_current "$wanted" && exit 0
fi

python="$venv/bin/python"
if ! "$python" -m pip --version >/dev/null 2>&1; then
  if ! base_python=$(tools/find_python.sh); then
    echo "install.sh: needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian and Ubuntu:" >&2
    echo "apt install python3 python3-venv); found none. Another place: PYTHON=/path/to/python $0" >&2
    exit 3
  fi
  echo "install.sh: making $venv with $base_python"
  "$base_python" -m venv --clear "$venv"
fi

rm -f "$venv"/.installed-*
pip=("$python" -m pip --quiet --disable-pip-version-check --no-input)
echo "install.sh: installing requirements/$wanted.txt into $venv"
if ! "${pip[@]}" install --require-hashes --only-binary :all: -r "requirements/$wanted.txt"; then
  echo "install.sh: could not install the pinned packages (network? pip's index settings?)" >&2
  exit 3
fi
"${pip[@]}" install --no-deps --no-build-isolation --editable .
for name in "${sets[@]}"; do contents "$name" >"$venv/.installed-$name"; done
echo "install.sh: done"

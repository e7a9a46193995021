#!/usr/bin/env bash
# Makes .venv and installs everything into it. Safe to run again after an interruption: pip skips what is there.
# Usage: scripts/setup.sh cpu|gpu
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-cpu}
python=${PYTHON:-python3.11}
case $extra in cpu | gpu) ;; *) echo "EXTRA=$extra: must be cpu or gpu" >&2; exit 2 ;; esac
command -v "$python" >/dev/null || { echo "PYTHON=$python: not found; mmsr1 needs Python 3.11" >&2; exit 2; }

# A half-made environment (no working pip) is made anew.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check)

if [ "$extra" = cpu ]; then
    # vLLM for CPUs needs the CPU build of torch. Where pip's own indexes have none, torch and torchvision alone come
    # from PyTorch's CPU index, without dependencies; those follow from PyPI below.
    if ! .venv/bin/python -c 'import torch; raise SystemExit(torch.__version__ != "2.13.0+cpu")' 2>/dev/null &&
        ! "${pip[@]}" install --quiet --no-deps 'torch==2.13.0+cpu' 2>/dev/null; then
        "${pip[@]}" install --no-deps --index-url https://download.pytorch.org/whl/cpu \
            'torch==2.13.0+cpu' 'torchvision==0.28.0+cpu'
    fi
fi
"${pip[@]}" install --editable ".[$extra,studies,dev]"
if [ "$extra" = cpu ]; then
    # vLLM asks for them; their PyPI builds want CUDA libraries, and nothing here uses sound or video.
    "${pip[@]}" uninstall --yes --quiet torchaudio torchcodec
fi

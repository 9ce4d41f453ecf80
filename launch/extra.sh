#!/usr/bin/env bash
# Prints the extra of setup.cfg that this machine needs: cuda13 or cuda12, whichever its NVIDIA driver takes, if nvidia-smi
# finds a GPU, otherwise nothing.
set -euo pipefail

if nvidia-smi --list-gpus 2>/dev/null | grep -q .; then
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
  if [[ ${driver%%.*} =~ ^[0-9]+$ ]] && ((${driver%%.*} >= 580)); then echo cuda13; else echo cuda12; fi
fi

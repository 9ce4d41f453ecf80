#!/usr/bin/env bash
# Prints the extra of setup.cfg that this machine needs: cuda if nvidia-smi finds a GPU, otherwise nothing.
if nvidia-smi --list-gpus 2>/dev/null | grep -q .; then echo cuda; fi

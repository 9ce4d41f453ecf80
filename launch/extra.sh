#!/usr/bin/env bash
# Prints the extra of setup.cfg for the accelerator of this machine: cuda where nvidia-smi finds a GPU, else nothing.
if nvidia-smi --list-gpus 2>/dev/null | grep -q .; then echo cuda; fi

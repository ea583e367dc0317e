# SPDX-License-Identifier: Apache-2.0
# Shared by the shell scripts of tools/: sourced, never run.

# The repository's root, whatever the working directory.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*"; }
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

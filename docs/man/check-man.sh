#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Formats each page and fails on any warning: by groff, and by mandoc where it is installed.
set -eu
if ! command -v groff >/dev/null; then
  echo "SKIP: groff is not installed (apt-get install groff-base)"
  exit 77
fi
failed=0
for page; do
  warnings=$(groff -man -Tutf8 -ww -z "$page" 2>&1) || failed=1
  if command -v mandoc >/dev/null; then
    warnings="$warnings$(mandoc -man -T lint -W warning "$page" 2>&1)" || failed=1
  fi
  if [ -n "$warnings" ]; then
    echo "$warnings"
    failed=1
  fi
done
exit "$failed"

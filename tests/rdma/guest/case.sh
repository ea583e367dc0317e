# SPDX-License-Identifier: Apache-2.0
# One case: its functions, and the word that says which.
here=/test
. /test/lib.sh
. /test/cases.sh
"$@"

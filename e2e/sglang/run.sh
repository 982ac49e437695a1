#!/bin/sh
# run.sh LIBRARY KVKEEP DIRECTORY: SGLang's factory, host pools and cache controller on the CPU over one `kvkeep serve`. Downloads
# torch and SGLang into DIRECTORY/venv the first time (KVKEEP_SGLANG_VENV names another). Ends with an error unless every item passes.
set -eu
library=$(realpath "$1") kvkeep=$(realpath "$2") here=$(realpath "$(dirname "$0")")
mkdir -p "$3" && directory=$(realpath "$3")
venv=${KVKEEP_SGLANG_VENV:-$directory/venv}
python=${PYTHON:-python3}

if ! "$venv/bin/python" -c 'import sglang.srt.managers.cache_controller' 2>/dev/null; then
    "$python" -m venv "$venv"
    # Not all that SGLang asks for: much of it is CUDA's. This is what its cache imports.
    "$venv/bin/pip" install --quiet --no-deps sglang==0.5.23 gguf torchvision
    "$venv/bin/pip" install --quiet --no-warn-conflicts torch==2.13.0 numpy 'transformers>=5.16' orjson ipython msgspec pyzmq psutil \
        pillow pydantic fastapi aiohttp requests pybase64 compressed-tensors einops xgrammar llguidance outlines_core openai \
        python-multipart uvicorn uvloop setproctitle sentencepiece tiktoken prometheus-client partial-json-parser interegular \
        packaging cloudpickle dill ninja
    sync
fi

# A socket's path may have some hundred bytes only, and the directory may be deep.
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
# daemon.py and items.py are those of vLLM's check.
export KVKEEP_LIBRARY="$library" PYTHONPATH="$here/../../bindings/python:$here/../vllm" PYTHONUNBUFFERED=1
# SGLang compiles its hashes with ninja.
PATH="$venv/bin:$PATH" "$venv/bin/python" "$here/check.py" "$kvkeep" "$directory" "$run"

#!/bin/sh
# run.sh LIBRARY KVKEEP DIRECTORY: LMCache's storage manager on the CPU over one `kvkeep serve`. Downloads torch and LMCache into
# DIRECTORY/venv the first time (KVKEEP_LMCACHE_VENV names another). Ends with an error unless every item passes.
set -eu
library=$(realpath "$1") kvkeep=$(realpath "$2") here=$(realpath "$(dirname "$0")")
mkdir -p "$3" && directory=$(realpath "$3")
venv=${KVKEEP_LMCACHE_VENV:-$directory/venv}
python=${PYTHON:-python3}

if ! "$venv/bin/python" -c 'import lmcache.v1.distributed.storage_manager' 2>/dev/null; then
    "$python" -m venv "$venv"
    # Not all that LMCache asks for: much of it is CUDA's. This is what its storage manager imports.
    "$venv/bin/pip" install --quiet --no-deps lmcache==0.5.6
    "$venv/bin/pip" install --quiet --no-warn-conflicts torch==2.13.0 'numpy<=2.2.6' numba nvtx msgspec aiofile aiofiles aiohttp \
        redis sortedcontainers opentelemetry-sdk opentelemetry-exporter-otlp 'prometheus_client<=0.24.1' psutil py-cpuinfo pyyaml \
        pyzmq safetensors 'transformers>=5.4' cachetools blake3 fastapi uvicorn httpx cryptography
    sync
fi

# A socket's path may have some hundred bytes only, and the directory may be deep.
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
# daemon.py and items.py are those of vLLM's check.
export KVKEEP_LIBRARY="$library" PYTHONPATH="$here/../../bindings/python:$here/../vllm" PYTHONUNBUFFERED=1
"$venv/bin/python" "$here/check.py" "$kvkeep" "$directory" "$run"

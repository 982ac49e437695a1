#!/bin/sh
# run.sh PREFIX DIRECTORY: kvkeep-llama and llama_server.py over an installed kvkeep, with toy models of random weights. The first time,
# llama.cpp is built in DIRECTORY from the sources in llama-cpp-python, which pip fetches (KVKEEP_LLAMA_PREFIX names one that is installed
# already, and KVKEEP_LLAMA_SERVER its llama-server). Ends with an error unless every item passes. The times are in
# DIRECTORY/first_token.md and .svg.
set -eu
prefix=$(realpath "$1") here=$(realpath "$(dirname "$0")")
mkdir -p "$2" && directory=$(realpath "$2")
python=${PYTHON:-python3} cmake=${CMAKE:-cmake} jobs=${JOBS:-$(nproc)}
version=0.3.36
llama=${KVKEEP_LLAMA_PREFIX:-$directory/llama} server=${KVKEEP_LLAMA_SERVER:-$directory/llama-build/bin/llama-server}

if [ ! -e "$llama/include/llama.h" ]; then
    sources=$directory/llama_cpp_python-$version/vendor/llama.cpp
    if [ ! -e "$sources" ]; then
        "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$directory" "llama-cpp-python==$version"
        tar -xzf "$directory/llama_cpp_python-$version.tar.gz" -C "$directory"
    fi
    # The library and llama-server alone, without what would be fetched.
    "$cmake" -S "$sources" -B "$directory/llama-build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_OPENMP=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_TOOLS_INSTALL=OFF
    "$cmake" --build "$directory/llama-build" -j "$jobs" --target llama llama-server
    "$cmake" --install "$directory/llama-build" --prefix "$llama" >/dev/null
fi
"$cmake" -S "$here/../../examples/llama" -B "$directory/example" -DCMAKE_PREFIX_PATH="$prefix;$llama"
"$cmake" --build "$directory/example"
"$directory/example/prompt_cache_test"

for model in full:llama:1:6 window:gemma3:2:6 draft:llama:3:2; do
    IFS=: read -r name architecture seed layers <<MODEL
$model
MODEL
    "$python" "$here/toy_model.py" "$directory/$name.gguf" "$architecture" "$seed" "$layers"
done

# A socket's path may have some hundred bytes only, and the directory may be deep.
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
LD_LIBRARY_PATH=$llama/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
# items.py is that of vLLM's check.
export PYTHONPATH="$here:$here/../vllm:$here/../../bindings/python" KVKEEP_LIBRARY="$prefix/lib/libkvkeep.so" PYTHONUNBUFFERED=1
status=0
"$python" "$here/server.py" "$server" "$here/../../examples/llama/llama_server.py" "$directory" "$run" || status=1
"$python" "$here/check.py" "$directory/example/kvkeep-llama" "$prefix/bin/kvkeep" "$directory" "$directory" "$run" || status=1
exit $status

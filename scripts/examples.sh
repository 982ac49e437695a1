#!/bin/sh
# examples.sh PREFIX BUILD: the quickstart in C, C++, Python, Go and Rust, against the package that is installed in PREFIX. CMake has
# built the first two into BUILD. Each runs alone, then over what the language before it has stored, and must find all of it. A language
# without its compiler here is reported as skipped.
set -eu
cd "$(dirname "$0")/.."
prefix=$(realpath "$1") build=$(realpath "$2") examples=$PWD/examples
library=$(realpath "$(find "$prefix" -name libkvkeep.so)")
folder=$(dirname "$library")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

quickstart() {
    language=$1
    shift
    case $language in
    c) "$build/quickstart" "$@" ;;
    cpp) "$build/quickstart_cpp" "$@" ;;
    python) KVKEEP_LIBRARY=$library PYTHONPATH=bindings/python python3 "$examples/quickstart.py" "$@" ;;
    go) "$build/quickstart_go" "$@" ;;
    rust) KVKEEP_LIBRARY=$library "$build/quickstart_rust" "$@" ;;
    esac
}

# shows LANGUAGE ONE TWO: the quickstart has found the chunks of its first request so, and those of its second.
shows() {
    for line in "$2" "$3"; do
        if ! grep -q "$line" "$work/output"; then
            echo "the quickstart in $1 does not say \"$line\":" && cat "$work/output" && return 1
        fi
    done
}

languages="c python"
if [ -x "$build/quickstart_cpp" ]; then
    languages="$languages cpp"
else
    scripts/skipped.sh "examples/quickstart.cpp" "there is no C++ compiler"
fi
if command -v go >/dev/null; then
    CGO_CFLAGS="-I$prefix/include -O2 -Wall -Werror" CGO_LDFLAGS="-L$folder -Wl,-rpath,$folder" GOCACHE="$build/go" GOTOOLCHAIN=local \
        go build -o "$build/quickstart_go" examples/go/quickstart.go
    languages="$languages go"
else
    scripts/skipped.sh "examples/go/quickstart.go" "there is no Go compiler"
fi
rustc --edition 2024 -O -D warnings -o "$build/quickstart_rust" examples/rust/quickstart.rs
languages="$languages rust"

former=rust
for language in $languages; do
    quickstart "$language" "$work/$language" >"$work/output"
    shows "$language" "^request 1: 0 .*0 from memory, 0 from below" "^request 2: 8 .*8 from memory, 0 from below"
done
for language in $languages; do
    quickstart "$language" "$work/$former" again >"$work/output"
    shows "$language" "^request 3: 12 .*0 from memory, 12 from below" "^request 4: 12 .*8 from memory, 4 from below"
    if quickstart "$language" nosuch://place >"$work/output" 2>&1; then
        echo "the quickstart in $language takes a backend that there is not" && exit 1
    fi
    shows "$language" nosuch "fs://"
    echo "the quickstart in $language finds all that the one in $former has stored"
    former=$language
done

#!/bin/sh
# examples.sh PREFIX BUILD: the quickstart in C, C++, Python, Go and Rust, and the engine in C++, Python and Go, against the package that is
# installed in PREFIX. CMake has built those in C and C++ into BUILD. Each runs alone, then over what the language before it has stored,
# and must find all of it. A language without its compiler here is reported as skipped.
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
    python) KVKEEP_LIBRARY=$library PYTHONPATH=bindings/python python3 "$examples/quickstart.py" "$@" ;;
    rust) KVKEEP_LIBRARY=$library "$build/quickstart_rust" "$@" ;;
    *) "$build/quickstart_$language" "$@" ;;
    esac
}

engine() {
    language=$1
    shift
    case $language in
    python) KVKEEP_LIBRARY=$library PYTHONPATH=bindings/python python3 "$examples/engine/engine.py" "$@" ;;
    *) "$build/engine_$language" "$@" ;;
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

languages="c python" engines=python
if [ -x "$build/quickstart_cpp" ]; then
    languages="$languages cpp" engines="$engines cpp"
else
    scripts/skipped.sh "examples/quickstart.cpp and examples/engine/engine.cpp" "there is no C++ compiler"
fi
if command -v go >/dev/null; then
    for program in go/quickstart engine/engine; do
        CGO_CFLAGS="-I$prefix/include -O2 -Wall -Werror" CGO_LDFLAGS="-L$folder -Wl,-rpath,$folder" GOCACHE="$build/go" \
            GOTOOLCHAIN=local go build -o "$build/${program#*/}_go" "examples/$program.go"
    done
    languages="$languages go" engines="$engines go"
else
    scripts/skipped.sh "examples/go/quickstart.go and examples/engine/engine.go" "there is no Go compiler"
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

# What the engine prints, by hand. Chunks have 64 tokens. B has two of A, C all three, but computes its last token. D and E need 12 blocks
# each for their 177th tokens, and there are 23: E gives its own up at 176 tokens, and has all of them back later. F has two of D.
cat >"$work/first" <<'END'
A: 200 prompt tokens, 0 cached, output right
B: 200 prompt tokens, 128 cached, output right
C: 192 prompt tokens, 191 cached, output right
D: 150 prompt tokens, 0 cached, output right
E: 150 prompt tokens, 0 cached, preempted, 176 cached, output right
F: 150 prompt tokens, 128 cached, aborted
0 objects loaded from below
END
# And of a later process: three chunks of A, the last of B, two of D and two of E come from below.
cat >"$work/again" <<'END'
A: 200 prompt tokens, 192 cached, output right
B: 200 prompt tokens, 192 cached, output right
C: 192 prompt tokens, 191 cached, output right
D: 150 prompt tokens, 128 cached, output right
E: 150 prompt tokens, 128 cached, preempted, 176 cached, output right
F: 150 prompt tokens, 128 cached, aborted
8 objects loaded from below
END
for language in $engines; do
    engine "$language" "$work/engine_$language" >"$work/output"
    diff "$work/first" "$work/output"
    former=$language
done
for language in $engines; do
    engine "$language" "$work/engine_$former" again >"$work/output"
    diff "$work/again" "$work/output"
    # With a cache that fails, it computes the same.
    engine "$language" "fault:fs://$work/engine_$former?capacity=1GiB&fault.load_error=0.5&fault.lookup_error=0.2&fault.seed=5" >"$work/output"
    if [ "$(grep -c 'output right$' "$work/output")" != 5 ]; then
        echo "the engine in $language over a cache that fails:" && cat "$work/output" && exit 1
    fi
    if engine "$language" nosuch://place >"$work/output" 2>&1; then
        echo "the engine in $language takes a backend that there is not" && exit 1
    fi
    shows "$language" nosuch "fs://"
    echo "the engine in $language goes on with what the one in $former has stored"
    former=$language
done

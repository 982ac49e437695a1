#!/bin/sh
# docs.sh TOOLS INTO: the documents and the header as a book in INTO, made by mdBook, which is installed into TOOLS if it is missing.
set -eu
cd "$(dirname "$0")/.."
tools=$1 into=$2

# install NAME VERSION [OPTION]...
install() {
    name=$1 version=$2
    shift 2
    if ! "$tools/bin/$name" --version 2>/dev/null | grep -qF "$version"; then
        echo "installing $name $version into $tools with cargo: this takes some minutes"
        # Unoptimized, since twenty pages are made in a moment all the same.
        CARGO_TARGET_DIR="$tools/target" cargo install "$name" --version "$version" --locked --debug --quiet --root "$tools" "$@"
    fi
}
install mdbook 0.5.4 --no-default-features --features search
install mdbook-mermaid 0.17.1
rm -rf "$tools/target"

# The pages keep their places, so that the links between them are good here and in the repository.
pages=$into/pages
rm -rf "$into" && mkdir -p "$pages"
tar -cf - --exclude=__pycache__ ./*.md LICENSE docs bench/RESULTS.md bindings/cpp/README.md bindings/python/README.md \
    bindings/python/kvkeep/vllm include examples | tar -xf - -C "$pages"
python3 scripts/header_reference.py include/kvkeep.h >"$pages/docs/header.md"
cat >"$pages/SUMMARY.md" <<'END'
# kvkeep

[kvkeep](README.md)

- [Installing](docs/install.md)
- [Embedding](docs/embedding.md)
- [The header](docs/header.md)
- [L1](docs/l1.md)
- [Prefetch](docs/prefetch.md)
- [Storage](docs/storage.md)
- [Transfers](docs/transfer.md)
- [The daemon](docs/daemon.md)
- [vLLM](docs/vllm.md)
- [LMCache](docs/lmcache.md)
- [SGLang](docs/sglang.md)
- [TensorRT-LLM](docs/tensorrt-llm.md)
- [llama.cpp](docs/llama.md)
- [C++](bindings/cpp/README.md)
- [Python](bindings/python/README.md)
- [Operations](docs/operations.md)
- [Security](SECURITY.md)
- [Benchmarks](docs/benchmarks.md)
- [Transfers on real GPUs](bench/RESULTS.md)
- [Tests](docs/testing.md)
- [Architecture](ARCHITECTURE.md)
- [Contributing](CONTRIBUTING.md)
- [Changes](CHANGELOG.md)
END
cat >"$into/book.toml" <<'END'
[book]
title = "kvkeep"
language = "en"
src = "pages"
[build]
build-dir = "html"
create-missing = false
[preprocessor.mermaid]
command = "mdbook-mermaid"
[output.html]
additional-js = ["mermaid.min.js", "mermaid-init.js"]
END
export PATH="$(cd "$tools" && pwd)/bin:$PATH"
mdbook-mermaid install "$into" 2>/dev/null
mdbook build "$into"
# mdBook calls a README's page index.html, but not where other pages link to it.
for page in bindings/cpp bindings/python; do cp "$into/html/$page/index.html" "$into/html/$page/README.html"; done
echo "the book is $into/html/index.html"

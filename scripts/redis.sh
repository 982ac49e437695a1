#!/bin/sh
# redis.sh: prints the path of a Redis or Valkey server. Where there is none, it installs Debian's if it runs as root; else it fails.
set -eu
find_server() {
    for name in redis-server valkey-server; do
        command -v "$name" && return
    done
    return 1
}
if find_server; then exit; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no redis-server or valkey-server is installed, and only root can install one" >&2
    exit 1
fi
{
    # A server for these programs alone: the one that the package would start is not wanted.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get install -y -qq --no-install-recommends redis-server ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server; }
} >&2
find_server

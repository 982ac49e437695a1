#!/usr/bin/env python3
"""container_check.py KVKEEP: what the container of examples/container does when it runs, without a container.

Its settings start the daemon, as its user where this is root. Its health check tells a daemon that serves from none. A process of the
group may connect, another user may not. Kubernetes mounts the directories that the settings name.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Far beyond what anything here needs: a watchdog, not an expectation.
WATCHDOG_S = 60

dockerfile = (ROOT / "examples/container/Dockerfile").read_text()
settings = (ROOT / "examples/container/kvkeep.toml").read_text()


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.S | re.M)
    assert match, f"nothing is like {pattern}"
    return match[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_names() -> None:
    """The port and the directories are the same wherever they are named."""
    port, user = found(r"^EXPOSE (\d+)$", dockerfile), found(r"^USER (\d+:\d+)$", dockerfile)
    assert f":{port}\"" in found(r"^(http = .*?)$", settings)
    assert found(r"^allow_groups = \[(\d+)\]$", settings) == user.split(":")[1]
    directories = json.loads(found(r"^VOLUME (.*?)$", dockerfile))
    assert directories == [str(Path(found(r'^socket = "(.*?)"', settings)).parent), found(r"fs://(.*?)\?", settings)]
    daemon, engine = ((ROOT / f"examples/kubernetes/{name}.yaml").read_text() for name in ("kvkeep", "engine"))
    assert re.findall(r"mountPath: (\S+)", daemon) == directories
    assert re.findall(r"mountPath: (\S+)", engine) == directories[:1]
    assert re.findall(r"runAs(?:User|Group): (\d+)", daemon)[:2] == user.split(":")
    assert json.loads(found(r">-\n(.*?\}\})$", engine))["kv_connector_extra_config"]["connect"].startswith(
        "unix://" + found(r'^socket = "(.*?)"', settings)
    )


def check_daemon(work: Path, kvkeep: Path, user: "dict[str, Any]", group: "dict[str, Any]", other: "dict[str, Any]") -> None:
    port, place = free_port(), work / "run" / "kvkeep.sock"
    health = [word.replace("9400", str(port)) for word in json.loads(found(r"^HEALTHCHECK .*?CMD (\[.*?\])$", dockerfile))]

    def run(*command: str, **identity: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WATCHDOG_S, **identity
        )

    assert run(*health, **user).returncode != 0, "a daemon that is not there is healthy"
    assert found(r'^CMD \["serve", "--config", "(.*?)"\]$', dockerfile) == "/etc/kvkeep.toml"
    elsewhere = ["--l2", f"fs://{work}/run/cache?capacity=1GiB", "--socket", str(place), "--http", f"127.0.0.1:{port}"]
    serve = [str(kvkeep), "serve", "--config", str(work / "kvkeep.toml"), "--l1", "64MiB", "--log", "warn", *elsewhere]
    daemon = subprocess.Popen(serve, **user)
    try:
        url = f"unix://{place}?wait_ms={WATCHDOG_S * 1000}"
        first = run(str(kvkeep), "stat", url, **user)
        assert first.returncode == 0, first.stdout
        healthy = run(*health, **user)
        assert healthy.returncode == 0, healthy.stdout
        if user:
            allowed, refused = run(str(kvkeep), "stat", url, **group), run(str(kvkeep), "stat", url, **other)
            assert allowed.returncode == 0, allowed.stdout
            assert refused.returncode != 0 and "may not be opened by this user" in refused.stdout, refused.stdout
        daemon.terminate()
        assert daemon.wait(WATCHDOG_S) == 0, "the daemon did not end well"
    finally:
        daemon.kill()
        daemon.wait()


def main() -> None:
    check_names()
    uid, gid = map(int, found(r"^USER (\d+:\d+)$", dockerfile).split(":"))
    work = Path(tempfile.mkdtemp())
    try:
        # Programs for everybody, and what the Dockerfile makes for its user.
        os.chmod(work, 0o755)
        kvkeep = Path(shutil.copy(sys.argv[1], work / "kvkeep"))
        shutil.copy(ROOT / "examples/container/kvkeep.toml", work)
        directory = work / "run"
        directory.mkdir(0o750)
        user: "dict[str, Any]" = {}
        group: "dict[str, Any]" = {}
        other: "dict[str, Any]" = {}
        if os.geteuid() == 0:
            os.chown(directory, uid, gid)
            identities = (uid, gid), (uid + 1, gid), (uid + 1, gid + 1)
            user, group, other = ({"user": of, "group": among, "extra_groups": []} for of, among in identities)
        check_daemon(work, kvkeep, user, group, other)
    finally:
        shutil.rmtree(work)
    print("the container's settings serve, and its health check tells it" + ("" if user else " (not as its user: this is not root)"))


main()

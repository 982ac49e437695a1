"""The ends of processes, the README's example and the wheel: each in an interpreter of its own."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import venv
from pathlib import Path

import kvkeep._library

from .support import BINDING, HANGING, ROOT, WATCHDOG_S, run_python

PENDING = f"""
import asyncio, kvkeep
cache = kvkeep.Cache(1 << 20, backends=["{HANGING}"])
session = cache.space("m").session()
job = session.prefetch([bytes(32)], callback=lambda completion: print("told", completion.status.name))
"""


class Processes(unittest.TestCase):
    def check(self, script: str) -> str:
        done = run_python(script)
        # In development mode, asyncio reports a step that a busy machine kept waiting.
        errors = re.sub(r"^Executing <.*> took [0-9.]+ seconds\n", "", done.stderr, flags=re.MULTILINE)
        self.assertEqual((done.returncode, errors), (0, ""))
        return done.stdout

    def test_exit_while_a_job_is_pending(self) -> None:
        self.assertEqual(self.check(PENDING), "told ERR_CANCELLED\n")

    def test_exit_while_a_job_is_awaited(self) -> None:
        script = PENDING + (
            "async def main():\n"
            "    job = session.prefetch([bytes(32)])\n"
            "    task = asyncio.ensure_future(asyncio.wait_for(job, 3600))\n"
            "    await asyncio.sleep(0)\n"
            "asyncio.run(main())\n"
        )
        self.assertEqual(self.check(script), "told ERR_CANCELLED\n")

    def test_exit_while_memory_is_in_use(self) -> None:
        script = PENDING + "views = session.reserve_write([bytes([1]) * 32], 64)\nview = views[0]\nview[0] = 1\n"
        self.assertEqual(self.check(script), "told ERR_CANCELLED\n")

    def test_a_cache_dropped_in_its_own_callback_closes(self) -> None:
        script = (
            "import kvkeep, threading\n"
            "def main():\n"
            "    cache = kvkeep.Cache(1 << 20)\n"
            "    done, may_go = threading.Event(), threading.Event()\n"
            "    keep = [cache]\n"
            "    def callback(completion):\n"
            "        may_go.wait()\n"
            "        keep.clear()\n"
            "        done.set()\n"
            "    cache.space('m').session().prefetch([bytes(32)], callback=callback)\n"
            "    finalizer = cache._finalizer\n"
            "    del cache\n"
            "    may_go.set()\n"
            "    done.wait()\n"
            "    assert not finalizer.alive\n"
            "main()\n"
        )
        self.assertEqual(self.check(script), "")

    def test_what_a_callback_raises_is_reported(self) -> None:
        done = run_python(
            "import kvkeep\n"
            "with kvkeep.Cache(1 << 20) as cache:\n"
            "    cache.space('m').session().prefetch([bytes(32)], callback=lambda _: 1 / 0)\n"
        )
        self.assertEqual(done.returncode, 0)
        self.assertIn("ZeroDivisionError", done.stderr)

    def test_the_readme_example(self) -> None:
        example = re.search(r"```python\n(.*?)```", (BINDING / "README.md").read_text(), re.S)
        assert example
        self.check(example[1])

    def test_a_library_that_is_not_there(self) -> None:
        done = run_python("import kvkeep", KVKEEP_LIBRARY="/nonexistent/libkvkeep.so")
        self.assertIn("set KVKEEP_LIBRARY to its path", done.stderr)


class Wheel(unittest.TestCase):
    """The wheel, installed where nothing of the build tree can be seen."""

    def test_it_carries_all_it_needs(self) -> None:
        place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, place)
        built = {**os.environ, "KVKEEP_LIBRARY": kvkeep._library.lib._name}
        subprocess.run([sys.executable, BINDING / "build_wheel.py", place], env=built, check=True, capture_output=True)
        (wheel,) = place.glob("*.whl")
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps", wheel]
        subprocess.run(pip, check=True, capture_output=True, timeout=4 * WATCHDOG_S)
        script = (
            "import kvkeep, kvkeep._library, pathlib, sys\n"
            "assert pathlib.Path(kvkeep._library.lib._name) == pathlib.Path(kvkeep.__file__).parent / 'libkvkeep.so'\n"
            "with kvkeep.Cache(1 << 20) as cache, cache.space('m').session() as session:\n"
            "    session.reserve_write([bytes(32)], 3)[0][:] = b'abc'\n"
            "    session.finish_write([bytes(32)])\n"
            "    assert session.prefetch([bytes(32)]).wait(60).hit_chunks == 1\n"
            "    sys.stdout.write(bytes(session.get_views([bytes(32)])[0]).decode())\n"
        )
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("KVKEEP", "PYTHON", "LD_"))}
        done = subprocess.run(
            [python, "-I", "-c", script], cwd=place, env=bare, text=True, capture_output=True, timeout=WATCHDOG_S
        )
        self.assertEqual((done.returncode, done.stdout), (0, "abc"), done.stderr)
        command = subprocess.run(
            [place / "venv" / "bin" / "kvkeep", "--version"], env=bare, text=True, capture_output=True, timeout=WATCHDOG_S
        )
        self.assertEqual(command.stdout, f"kvkeep {kvkeep.__version__}\n", command.stderr)
        module = subprocess.run(
            [python, "-I", "-m", "kvkeep", "--version"], cwd=place, env=bare, text=True, capture_output=True, timeout=WATCHDOG_S
        )
        self.assertEqual(module.stdout, command.stdout, module.stderr)
        (header,) = (place / "venv").rglob("kvkeep.h")
        self.assertEqual(header.read_bytes(), (ROOT / "include" / "kvkeep.h").read_bytes())

    def test_its_name_says_which_machine_and_c_library_its_programs_need(self) -> None:
        sys.path.insert(0, str(BINDING))
        self.addCleanup(sys.path.remove, str(BINDING))
        build_wheel = importlib.import_module("build_wheel")

        def program(machine: int, *versions: str) -> bytes:
            return bytes(18) + struct.pack("<H", machine) + b"".join(f"\0GLIBC_{name}\0".encode() for name in versions)

        old, new = program(62, "2.2.5", "2.17"), program(62, "2.28", "2.4")
        self.assertEqual(build_wheel.platform_tag(old, old), "manylinux_2_17_x86_64")
        self.assertEqual(build_wheel.platform_tag(old, new), "manylinux_2_28_x86_64")
        self.assertEqual(build_wheel.platform_tag(program(183, "2.17")), "manylinux_2_17_aarch64")
        with self.assertRaisesRegex(SystemExit, "different machines: build them together"):
            build_wheel.platform_tag(old, program(183, "2.17"))

    def test_a_command_that_is_not_there(self) -> None:
        place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, place)
        built = {**os.environ, "KVKEEP_LIBRARY": kvkeep._library.lib._name, "KVKEEP_COMMAND": "/nonexistent/kvkeep"}
        done = subprocess.run(
            [sys.executable, BINDING / "build_wheel.py", place], env=built, text=True, capture_output=True, timeout=WATCHDOG_S
        )
        self.assertIn("the kvkeep command is not at /nonexistent/kvkeep: set KVKEEP_COMMAND to its path", done.stderr)

    def test_pip_builds_it(self) -> None:
        place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, place)
        built = {**os.environ, "KVKEEP_LIBRARY": kvkeep._library.lib._name}
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "wheel",
            "--no-index",
            "--no-build-isolation",
        ]
        done = subprocess.run(
            [*pip, "-w", place, BINDING], env=built, text=True, capture_output=True, timeout=4 * WATCHDOG_S
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(list(place.glob("kvkeep-*.whl"))), 1)
        self.assertFalse((ROOT / "build_wheel").exists())

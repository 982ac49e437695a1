"""python3 -m kvkeep: which program runs."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
import unittest.mock
from pathlib import Path

from kvkeep import __main__ as command

from .support import PACKAGE, WATCHDOG_S, CacheTest

PRINTS = "#!/bin/sh\nprintf '%s|' \"$@\"\nexit 3\n"


class CommandTest(CacheTest):
    def run_module(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-m", "kvkeep", *arguments],
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
            text=True,
            capture_output=True,
            timeout=WATCHDOG_S,
        )
        return done.returncode, done.stdout, done.stderr

    def program(self) -> str:
        program = Path(self.directory()) / "kvkeep"
        program.write_text(PRINTS)
        program.chmod(0o755)
        return str(program)

    def test_the_command_of_the_environment_gets_the_arguments(self) -> None:
        ran = self.run_module("stat", "--json", "a b", KVKEEP_COMMAND=self.program())
        self.assertEqual(ran, (3, "stat|--json|a b|", ""))

    def test_a_command_that_cannot_be_run_is_named(self) -> None:
        status, _, errors = self.run_module("stat", KVKEEP_COMMAND="/nonexistent/kvkeep")
        self.assertEqual(status, 1)
        self.assertIn("/nonexistent/kvkeep cannot be run: No such file or directory; set KVKEEP_COMMAND", errors)

    def test_help_and_nothing_say_what_there_is(self) -> None:
        status, output, _ = self.run_module("--help", KVKEEP_COMMAND="/nonexistent/kvkeep")
        self.assertEqual(status, 0)
        self.assertIn("python3 -m kvkeep stat|top|explain", output)
        status, _, errors = self.run_module(KVKEEP_COMMAND="/nonexistent/kvkeep")
        self.assertEqual(status, 2)
        self.assertIn("usage", errors)

    def test_the_command_is_looked_for_beside_the_library_and_in_the_path(self) -> None:
        program = Path(self.program())
        library = type("Library", (), {"_name": str(program.parent / "libkvkeep.so")})
        bare = {"PATH": "", "KVKEEP_COMMAND": ""}
        with unittest.mock.patch.dict(os.environ, bare), unittest.mock.patch.object(command, "lib", library):
            with unittest.mock.patch.object(command.sysconfig, "get_path", return_value="/nonexistent"):
                self.assertEqual(command.command(), str(program))
                library._name = "libkvkeep.so.0.1"
                with self.assertRaisesRegex(SystemExit, "not in /nonexistent: install the wheel, or set KVKEEP_COMMAND"):
                    command.command()
                os.environ["PATH"] = str(program.parent)
                self.assertEqual(command.command(), str(program))

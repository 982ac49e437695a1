"""That ctypes sees what the C compiler sees."""

from __future__ import annotations

import ctypes
import inspect
import subprocess
import sys
import unittest

import kvkeep
from kvkeep import _ffi

from .support import BINDING, ROOT

sys.path.insert(0, str(BINDING))
import generate  # noqa: E402

LAYOUT = ROOT / "c_tests" / "layout.golden"


class Ffi(unittest.TestCase):
    def test_it_is_what_the_header_says(self) -> None:
        done = subprocess.run([sys.executable, BINDING / "generate.py", "--check"], text=True, capture_output=True)
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_a_changed_header_is_noticed(self) -> None:
        text = generate.HEADER.read_text()
        for before, after in (
            ("KVKEEP_ERR_INVALID = -1", "KVKEEP_ERR_INVALID = -2"),
            ("uint32_t rank;", "uint64_t rank;"),
            ("uint32_t timeout_ms);", "uint64_t timeout_ms);"),
            ("#define KVKEEP_TIERS_MAX 8", "#define KVKEEP_TIERS_MAX 9"),
        ):
            self.assertIn(before, text)
            changed = generate.render(generate.Header(text.replace(before, after)))
            self.assertNotEqual(changed, generate.OUTPUT.read_text())

    def test_what_the_parser_does_not_know_is_refused(self) -> None:
        for text in ("long kvkeep_x(void);", "typedef union { int a; } kvkeep_u;", "int kvkeep_x(void)"):
            with self.subTest(text=text), self.assertRaises(generate.HeaderError):
                generate.Header(text)

    def test_function_pointers_in_structs(self) -> None:
        header = generate.Header(
            "typedef struct { int32_t (*load)(void *self, const char *const *urls); } kvkeep_vtable;"
        )
        self.assertEqual(header.structs["kvkeep_vtable"], [("load", "CFUNCTYPE(c_int32, c_void_p, POINTER(c_char_p))")])

    def test_layout_is_the_c_compilers(self) -> None:
        for line in LAYOUT.read_text().splitlines():
            name, *numbers = line.split()
            struct, _, field = name.partition(".")
            kind = getattr(_ffi, struct)
            place = getattr(kind, field) if field else None
            seen = [place.offset, place.size] if place else [ctypes.sizeof(kind)]
            self.assertEqual(seen, [int(number) for number in numbers], line)

    def test_every_option_can_be_given(self) -> None:
        own = {"struct_size", "abi_version", "reserved", "reserved_0", "log_userdata", "key_userdata"}
        renamed = {"backend_urls": "backends", "backend_count": "backends", "group_rule_count": "group_rules"}
        renamed["segment_count"] = renamed["parts"] = "segments"
        for struct, function in (
            (_ffi.kvkeep_options, kvkeep.Cache),
            (_ffi.kvkeep_space_options, kvkeep.Cache.space),
            (_ffi.kvkeep_session_options, kvkeep.Space.session),
            (_ffi.kvkeep_prefetch_options, kvkeep.Session.prefetch),
            (_ffi.kvkeep_pool_options, kvkeep.Space.pool),
            (_ffi.kvkeep_segment, kvkeep.Segment),
            (_ffi.kvkeep_transfer_options, kvkeep.Pool.load),
        ):
            given = set(inspect.signature(function).parameters)
            # Times are in seconds here.
            needed = {renamed.get(name, name.removesuffix("_ms")) for name, *_ in struct._fields_} - own
            self.assertLessEqual(needed, given)

    def test_every_function_is_used(self) -> None:
        sources = "\n".join(path.read_text() for path in (BINDING / "kvkeep").glob("*.py") if path.name != "_ffi.py")
        unused = {name for name in _ffi.FUNCTIONS if name not in sources}
        # A call and what asks for its error run on one thread, and ctypes has no macros to do without.
        self.assertEqual(unused, {"kvkeep_status_name", "kvkeep_get_error", "kvkeep_init_struct"})

from __future__ import annotations

import ctypes
import unittest

import kvkeep

from .support import some_keys


class Keys(unittest.TestCase):
    def test_from_hashes_and_tuples(self) -> None:
        keys = kvkeep.keys([b"a" * 32, (b"b" * 32, 1, 2), kvkeep.Key(b"c" * 32, group=3)])
        self.assertEqual(list(keys), [(b"a" * 32, 0, 0), (b"b" * 32, 1, 2), (b"c" * 32, 0, 3)])

    def test_a_writable_buffer_is_not_copied(self) -> None:
        records = bytearray(80)
        keys = kvkeep.keys(records)
        self.assertEqual(len(keys), 2)
        records[40:72] = b"z" * 32
        self.assertEqual(keys[1].hash, b"z" * 32)
        self.assertIs(kvkeep.keys(keys), keys)

    def test_structured_records_are_not_copied(self) -> None:
        class Record(ctypes.Structure):
            _fields_ = [("hash", ctypes.c_uint64 * 4), ("rank", ctypes.c_uint32), ("group", ctypes.c_uint32)]

        records = (Record * 3)()
        keys = kvkeep.keys(records)
        records[2].rank = 5
        self.assertEqual(keys[2].rank, 5)
        self.assertEqual(ctypes.addressof(keys.array), ctypes.addressof(records))

    def test_a_read_only_buffer_is_copied(self) -> None:
        self.assertEqual(kvkeep.keys(bytes(some_keys(3))), some_keys(3))
        self.assertEqual(len(kvkeep.keys(b"")), 0)

    def test_slices_share_memory(self) -> None:
        keys = some_keys(4)
        part = keys[1:3]
        keys.array[1].rank = 9
        self.assertEqual((len(part), part[0].rank), (2, 9))
        self.assertEqual(keys[::-1][0], keys[3])
        self.assertEqual(len(keys[4:]), 0)
        self.assertEqual(keys[-1], keys[3])

    def test_what_is_no_key(self) -> None:
        for source in (bytearray(41), [b"short"], [(b"a" * 32, -1, 0)], [(b"a" * 32, 0, 1 << 32)]):
            with self.subTest(source=source), self.assertRaises(kvkeep.InvalidError):
                kvkeep.keys(source)

"""The store keeps text and bytes, and a tampered database or directory makes nothing run and nothing leak."""

import os
import pickle
import resource
import sqlite3
import stat
from pathlib import Path

import pytest
from cache_helpers import Opens, tamper
from diskcache import FanoutCache

from mmsr1.tools.store import CorruptEntry, PlainDisk, Store

KEY = "ab" * 32
LARGE = 100_000  # beyond 32 KiB a value lies in a file of its own


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.mark.parametrize("value", ["text", b"bytes", "ä\r\n" * LARGE, b"\0\r\n" * LARGE, "", b""])
def test_text_and_bytes_come_back_as_they_were(store, value):
    store.put(KEY, value)
    again = Store(store.directory).get(KEY)
    assert again == value and type(again) is type(value)
    assert store.get("cd" * 32) is None


def test_the_directory_is_private_even_if_it_was_not(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o755)
    Store(tmp_path / "cache")
    assert stat.S_IMODE(os.stat(tmp_path / "cache").st_mode) == 0o700


@pytest.mark.parametrize("value", [1, None, {"a": 1}, Opens(Path("/nowhere")), bytearray(b"x")])
def test_other_values_are_not_stored(store, value):
    with pytest.raises(CorruptEntry, match="only str and bytes"):
        PlainDisk(str(store.directory)).store(value, False, KEY)
    with pytest.raises(CorruptEntry, match="only str and bytes"):
        PlainDisk(str(store.directory)).store(b"a file", True, KEY)


@pytest.mark.parametrize("key", ["short", "AB" * 32, f"../{KEY}", f"blob:{KEY}x", 5, ("a", "b")])
def test_other_keys_are_not_used(store, key):
    with pytest.raises(CorruptEntry, match="a key is a sha256"):
        PlainDisk(str(store.directory)).put(key)


def test_nothing_is_evicted_and_the_memory_map_is_off(store):
    assert store._cache.eviction_policy == "none"
    assert store._cache.cull_limit == 0 and store._cache.sqlite_mmap_size == 0


def test_a_pickled_row_is_refused_and_not_executed(store, tmp_path):
    payload, canary = pickle.dumps(Opens(tmp_path / "canary")), tmp_path / "canary"
    store.put(KEY, "honest")
    tamper(store.directory, KEY, mode=4, value=payload)
    with pytest.raises(CorruptEntry, match="refused a row of mode 4"):
        Store(store.directory).get(KEY)
    assert not canary.exists()
    # The attack is real: plain diskcache runs it.
    FanoutCache(str(store.directory), shards=8).get(KEY)
    assert canary.exists()


def test_a_pickled_file_and_a_pickled_key_are_refused(store, tmp_path):
    payload, canary = pickle.dumps(Opens(tmp_path / "canary")), tmp_path / "canary"
    store.put(KEY, b"x" * LARGE)
    (value_file,) = store.directory.glob("*/*/*/*.val")
    value_file.write_bytes(payload)
    tamper(store.directory, KEY, mode=4)
    with pytest.raises(CorruptEntry, match="mode 4"):
        store.get(KEY)
    with pytest.raises(CorruptEntry, match="pickle"):
        PlainDisk(str(store.directory)).get(payload, False)
    assert not canary.exists()


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("name", ["../../secret", "{outside}", "00/../../../secret", "00/00/" + "0" * 28 + ".val/", ""])
def test_a_file_name_that_leads_out_is_refused(store, tmp_path, mode, name):
    secret = tmp_path / "secret"
    secret.write_text("do not read")
    store.put(KEY, "honest")
    tamper(store.directory, KEY, mode=mode, value=None, filename=name.format(outside=secret))
    with pytest.raises(CorruptEntry, match="refused a row"):
        store.get(KEY)
    store.put(KEY, "honest again")  # overwriting removes the old row's file: not this one
    assert secret.read_text() == "do not read" and store.get(KEY) == "honest again"


def test_a_link_that_leads_out_is_refused(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"do not read")
    store.put(KEY, b"x" * LARGE)
    (value_file,) = store.directory.glob("*/*/*/*.val")
    value_file.unlink()
    value_file.symlink_to(secret)
    with pytest.raises(CorruptEntry, match="refused a row"):
        store.get(KEY)


@pytest.mark.parametrize("columns", [{"value": 5}, {"value": 0.5}, {"value": None}, {"mode": 0}, {"mode": "x"}])
def test_a_row_of_another_type_is_refused(store, columns):
    store.put(KEY, "honest")
    tamper(store.directory, KEY, **columns)
    with pytest.raises(CorruptEntry):
        store.get(KEY)


def test_damaged_text_is_refused_and_a_lost_file_is_a_miss(store):
    store.put(KEY, "x" * LARGE)
    (value_file,) = store.directory.glob("*/*/*/*.val")
    value_file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CorruptEntry, match="unreadable row"):
        store.get(KEY)
    value_file.unlink()
    assert store.get(KEY) is None


def test_a_damaged_database_is_reported_as_corrupt(store):
    store.put(KEY, "honest")
    store.close()
    for database in store.directory.glob("*/cache.db"):
        database.write_bytes(b"SQLite format 3\0" + b"\x13" * 5000)
        database.with_name("cache.db-wal").unlink(missing_ok=True)
    with pytest.raises(CorruptEntry, match="unreadable row"):
        store.get(KEY)


def test_a_store_that_cannot_be_opened_says_what_to_do(store):
    store.close()
    for database in store.directory.glob("*/cache.db"):
        database.write_bytes(b"no database at all" * 500)
        database.with_name("cache.db-wal").unlink(missing_ok=True)
    with pytest.raises(OSError, match="cannot be opened .*: make room on its disk, or move it away"):
        Store(store.directory)


def test_a_value_that_the_disk_refuses_leaves_nothing_behind(store):
    store.put(KEY, b"old" * LARGE)
    (old,) = store.directory.glob("*/*/*/*.val")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # as a full disk, half-way through the file
    try:
        with pytest.raises(OSError, match="too large"):
            store.put(KEY, b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.get(KEY) == b"old" * LARGE and list(store.directory.glob("*/*/*/*.val")) == [old]


class Refusing:
    """A connection whose COMMIT fails, as on a disk that has just become full."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def execute(self, statement: str, *rest):
        if statement == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self.connection.execute(statement, *rest)

    def __getattr__(self, name: str):
        return getattr(self.connection, name)


def test_a_row_that_the_disk_refuses_leaves_no_file_and_no_open_transaction(store):
    shard = store._shard(KEY)
    shard._local.con = Refusing(shard._con)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.put(KEY, b"x" * LARGE)
    shard._local.con = shard._local.con.connection
    assert store.get(KEY) is None and not list(store.directory.glob("*/*/*/*.val"))
    store.put(KEY, b"x" * LARGE)  # there is room again
    assert store.get(KEY) == b"x" * LARGE


def test_a_locked_database_is_an_error_and_not_tried_for_ever(store):
    shard = store._shard(KEY)
    shard._con.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(Path(shard.directory) / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OSError, match="cannot be written"):
        store.put(KEY, "x" * LARGE)
    assert store.get(KEY) is None and not list(store.directory.glob("*/*/*/*.val"))
    other.execute("ROLLBACK")
    store.put(KEY, "x")
    assert store.get(KEY) == "x"

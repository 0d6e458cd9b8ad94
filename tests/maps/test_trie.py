"""LPM_TRIE: against a brute-force search, in programs, and whole reads while it changes."""

from __future__ import annotations

import errno
import ipaddress
import threading
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privileges import without_batches
from raw import put

import fastmap
from fastmap import (
    EXIST,
    NOEXIST,
    BatchError,
    KeyExists,
    KeyNotFound,
    MapFlag,
    MapFull,
    NotSupported,
    PermissionDenied,
    Program,
)
from fastmap._core.maps.trie_reader import COUNTS_SINCE
from fastmap.asm import FP, R0, R1, R2, Assembler, Code, Helper
from fastmap.enums import running_kernel

Make = Callable[..., Any]

#: Whether the kernel counts the entries of a trie, and so a read of all can be told from another.
COUNTS = running_kernel() >= COUNTS_SINCE

V4 = np.dtype([("prefixlen", "u4"), ("addr", "u1", (4,))])
V6 = np.dtype([("prefixlen", "u4"), ("addr", "u1", (16,))])


def hosts(n: int, prefixlen: int = 32) -> Any:
    """Return `n` different prefixes, the i-th of the address i (for 32 bits)."""
    keys = np.zeros(n, V4)
    keys["prefixlen"] = prefixlen
    numbers = np.arange(n) << (32 - prefixlen)
    keys["addr"] = numbers.astype(">u4").view("u1").reshape(-1, 4)
    return keys


@pytest.mark.quick
def test_round(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=10)
    assert type(m) is fastmap.LpmTrie and m.key_dtype == V4 and m.flags == MapFlag.NO_PREALLOC
    assert not m and len(m) == 0
    m["10.0.0.0/8"] = 1
    m["10.1.0.0/16"] = 2
    m[ip_address("10.1.2.3")] = 3
    m["0.0.0.0/0"] = 9
    assert [m[k] for k in ("10.1.2.3", "10.1.2.4", "10.2.0.0", "192.0.2.1")] == [3, 2, 1, 9]
    assert m["10.1.0.0/12"] == 1 and m["10.0.0.0/7"] == 9  # never a longer one than asked for
    del m["0.0.0.0/0"]
    assert "10.200.0.1" in m and "192.0.2.1" not in m and m.get("192.0.2.1") is None
    with pytest.raises(KeyNotFound):
        del m["10.1.2.0/24"]  # covered, but not there itself
    networks = [ip_network(n) for n in ("10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/8")]
    assert list(m) == list(m.keys()) == networks and len(m) == 3 and m
    expected = dict(zip(networks, (3, 2, 1), strict=True))
    assert dict(m.items()) == dict(m.snapshot().items()) == expected
    assert m.snapshot().keys.dtype == V4 and m.snapshot().complete == COUNTS


FORMS: list[Any] = [
    "10.1.2.0/24", ip_network("10.1.2.0/24"), (24, b"\x0a\1\2\0"), (24, [10, 1, 2, 0]),
    np.array([(24, [10, 1, 2, 0])], V4)[0], np.array((24, [10, 1, 2, 0]), V4),
    np.uint32(24).tobytes() + b"\x0a\1\2\0", "10.1.2.77/24", ip_interface("10.1.2.77/24"),
    (24, b"\x0a\1\2\xff"),
]  # fmt: skip


@pytest.mark.parametrize("key", FORMS, ids=lambda key: repr(key)[:40])
def test_forms_of_a_key(make: Make, key: Any) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=10)
    m[key] = 5
    assert m[key] == 5 and key in m and list(m) == [ip_network("10.1.2.0/24")]
    # What is behind the prefix was cleared: the kernel would have kept it.
    assert m.snapshot().keys.tobytes() == np.uint32(24).tobytes() + b"\x0a\1\2\0"
    m.delete(key)
    assert m.update_many([key], [6]) == 1 and m.lookup_many([key])[0].tolist() == [6]
    assert m.snapshot().keys["addr"].tolist() == [[10, 1, 2, 0]]
    assert m.pop(key) == 6 and not m
    assert m.setdefault(key, 7) == 7 and m.delete_many([key]) == 1


@pytest.mark.parametrize(("key", "error"), [
    ("", ValueError), ("10.0.0.0/", ValueError), ("10.0.0/8", ValueError), ("::1", ValueError),
    ("10.0.0.0/33", ValueError), ("10.0.0.0/-1", ValueError), ("10.0.0.0/ 8", ValueError),
    ("10.0.0.1\0", ValueError), ("10.0.0.01", ValueError), ("10.0.0.0/255.0.0.0", ValueError),
    ("10.0.0.\u0661", ValueError), ("10.0.0.0/\u0668", ValueError), ("name", ValueError),
    (ip_address("::1"), TypeError), (ip_network("::/0"), TypeError), (5, TypeError),
    (b"\x0a\1\2\3", ValueError), ((33, b"abcd"), ValueError), ((-1, b"abcd"), OverflowError),
    ((8, b"abc"), ValueError), (None, TypeError), (np.uint32(2**31).tobytes() * 2, ValueError),
], ids=lambda x: repr(x)[:40])  # fmt: skip
def test_keys_that_are_refused(make: Make, key: Any, error: type[Exception]) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=10)
    with fastmap.open(id=m.id, readonly=True) as deaf:
        for call in (lambda: deaf[key], lambda: deaf.update(key, 1), lambda: deaf.delete(key),
                     lambda: deaf.update_many([key], 1), lambda: deaf.lookup_many([key]),
                     lambda: key in deaf, lambda: deaf.delete_many([key]),
                     lambda: deaf.pop(key)):  # fmt: skip
            with pytest.raises(error):
                call()


def test_scoped_addresses_are_refused(make: Make) -> None:
    m = make("lpm_trie", key="ipv6", value="u4", max_entries=10)
    for key in (ip_address("fe80::1%eth0"), "fe80::1%eth0"):
        with pytest.raises(ValueError):
            m[key] = 1


@pytest.mark.quick
def test_arrays_of_addresses(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u8", max_entries=1000)
    m.update_many(hosts(256, 24), np.arange(256))
    numbers = np.array([0x00000105, 0x0000FF00, 0x01000000, 0x00000001], ">u4")
    octets = numbers.view("u1").reshape(-1, 4)
    text = np.array([str(ipaddress.IPv4Address(n)) for n in numbers.tolist()])
    keys = np.array([(32, o) for o in octets], V4)
    column = np.zeros(4, [("x", "u1"), ("address", "u1", (4,))])
    column["address"] = octets
    for form in (numbers, octets, text, keys, text.tolist(), column["address"], keys[::-1][::-1]):
        values, found = m.lookup_many(form)
        assert values.tolist() == [1, 255, 0, 0] and found.tolist() == [True, True, False, True]
    for form in (numbers.astype("u4"), numbers.astype("i8"), octets.reshape(2, 8), octets[0],
                 octets.astype("u2"), numbers.reshape(2, 2), text.reshape(2, 2)):
        with pytest.raises((TypeError, ValueError)):
            m.lookup_many(form)
    with pytest.raises(TypeError, match=r"astype\('>u4'\)"):
        m.lookup_many(numbers.astype("u4"))
    assert m.lookup_many(octets, threads=2)[0].tolist() == [1, 255, 0, 0]
    six = make("lpm_trie", key="ipv6", value="u8", max_entries=1000)
    six["2001:db8::/32"] = 7
    packed = np.frombuffer(ip_address("2001:db8::5").packed * 2, "u1").reshape(2, 16)
    assert six.lookup_many(packed)[0].tolist() == [7, 7]
    with pytest.raises(TypeError):
        six.lookup_many(numbers)
    assert list(six) == [IPv6Network("2001:db8::/32")]


def test_prefixes_of_arrays_are_checked_and_cleared(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=100)
    keys = hosts(5)
    keys["addr"] = 0xFF
    keys["prefixlen"] = [0, 1, 12, 31, 32]
    given = keys.copy()
    assert m.update_many(keys, np.arange(5)) == 5 and (keys == given).all()
    assert {str(k): v for k, v in m.items()} == {
        "0.0.0.0/0": 0, "128.0.0.0/1": 1, "255.240.0.0/12": 2, "255.255.255.254/31": 3,
        "255.255.255.255/32": 4}  # fmt: skip
    assert [k.tolist() for k in m.snapshot().keys["addr"]] == [
        [255] * 4, [255, 255, 255, 254], [255, 240, 0, 0], [128, 0, 0, 0], [0] * 4]
    keys["prefixlen"][3] = 33
    for call in (m.lookup_many, m.delete_many, lambda k: m.update_many(k, 1)):
        with pytest.raises(ValueError, match="key 3: a prefix of 33 bits; there are 32"):
            call(keys)
    assert len(m) == 5 and m.delete_many(given) == 5 and not m


def test_others_may_leave_bits_behind_the_prefix(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=100)
    put(m, np.uint32(8).tobytes() + b"\x0a\1\2\3", b"\5\0\0\0")
    assert list(m) == [IPv4Network("10.0.0.0/8")] and m["10.0.0.0/8"] == 5
    assert m.snapshot().keys["addr"].tolist() == [[10, 1, 2, 3]]  # the kernel keeps them
    assert m.popitem() == (IPv4Network("10.0.0.0/8"), 5)


@pytest.mark.parametrize("key", [
    "V5", "V260", [("prefixlen", "u4"), ("vlan", ">u2"), ("addr", "u1", (6,))],
    [("prefixlen", "u4"), ("vrf", "u1"), ("addr", ">u4")]], ids=str)
def test_other_keys(make: Make, key: Any) -> None:
    m = make("lpm_trie", key=key, value="u2", max_entries=10)
    size = m.key_dtype.itemsize
    keys = [np.uint32(length).tobytes() + b"\xf0" + bytes(size - 5) for length in (0, 4, 8)]
    assert m.update_many(keys, [1, 2, 3]) == 3
    assert m[np.uint32(8).tobytes() + b"\xff" + bytes(size - 5)] == 2
    assert [k if isinstance(k, bytes) else k.tobytes() for k in m] == [
        keys[2], keys[1], bytes(size)]
    assert len(m) == 3 and len(m.drain()) == 3


@pytest.mark.parametrize(("key", "words"), [
    (np.dtype([("plen", "u1"), ("addr", "u4")], align=True), "begins with the length"),
    ([("addr", "u1", (4,)), ("plen", "u4")], "begins with the length"),
    ([("plen", ">u4"), ("addr", "u1", (4,))], "native order"),
    (np.dtype([("plen", "u4"), ("vrf", "u1"), ("addr", ">u4")], align=True), "padding at byte 5"),
    ({"names": ["plen", "addr"], "formats": ["u4", ">u4"], "offsets": [0, 6]}, "padding at byte 4"),
], ids=str)
def test_keys_that_are_no_length_and_bytes(make: Make, key: Any, words: str) -> None:
    """What numpy's copies leave out, or a length elsewhere, has made the core read past its end."""
    size = np.dtype(key).itemsize
    there = make("lpm_trie", key=f"V{size}", value="u4", max_entries=4)
    for call in (lambda: fastmap.create("lpm_trie", key=key, value="u4", max_entries=4),
                 lambda: fastmap.open(id=there.id, key=key)):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("key", [[("prefixlen", "u4"), ("addr", "u4")],
                                 [("plen", "u4"), ("a", [("b", "u1"), ("c", "<i8")])]], ids=str)
def test_addresses_in_the_host_s_order(make: Make, key: Any) -> None:
    """Their prefixes are not those of the number: refused when made, told when opened."""
    with pytest.raises(ValueError, match="key .*: prefixes are of bytes as they lie.*'>u4'"):
        fastmap.create("lpm_trie", key=key, value="u4", max_entries=4)
    there = make("lpm_trie", key=f"V{np.dtype(key).itemsize}", value="u4", max_entries=4)
    with (pytest.warns(UserWarning, match="in the host's order"),
          fastmap.open(id=there.id, key=key) as m):
        assert m.key_dtype == np.dtype(key)


@pytest.mark.parametrize("key", [[("len", "u4"), ("to", ">u4")],
                                 [("prefixlen", "u4"), ("data", "u1", (4,))],
                                 [("p", "u4"), ("v6", "u1", (16,))]], ids=str)
def test_prefixes_of_ip_by_any_names(make: Make, key: Any) -> None:
    """As C declares them: {u32, __be32}, {u32, u8[4]}, {u32, u8[16]}."""
    six = np.dtype(key).itemsize == 20
    network = "2001:db8::/32" if six else "10.0.0.0/8"
    inside = "2001:db8::5" if six else "10.1.2.3"
    m = make("lpm_trie", key=key, value="u4", max_entries=4)
    m[network] = 7
    assert m[inside] == 7 and inside in m and list(map(str, m)) == [network]
    assert m.lookup_many([inside, network])[0].tolist() == [7, 7]
    packed = np.frombuffer(ipaddress.ip_address(inside).packed, "u1").reshape(1, -1)
    assert m.lookup_many(packed)[0].tolist() == [7]


def test_lengths_that_change_while_they_are_checked(make: Make) -> None:
    """Each is copied once and checked in the copy: whatever another thread writes meanwhile."""
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=64)
    keys = np.zeros(2000, m.key_dtype)
    keys["addr"] = 255  # bits behind the prefix: what is cleared is a copy
    stop, wrote = threading.Event(), threading.Event()

    def write() -> None:
        lengths = keys["prefixlen"]
        while not stop.is_set():
            for length in (8, 2**32 - 16, 33, 2**31):
                lengths[:] = length
            wrote.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wrote.wait()
        for _ in range(300):
            for call in (m.lookup_many, m.delete_many):
                try:
                    call(keys)
                except ValueError as error:
                    assert "there are 32" in str(error) or "Errno 22" in str(error)
                except fastmap.BpfError as error:  # the kernel read another one once more
                    assert error.errno == errno.EINVAL
    finally:
        stop.set()
        writer.join()


def test_creation_and_opening(make: Make) -> None:
    for key in ("V4", "V261", "u4", "u1"):
        with pytest.raises(ValueError, match="5 to 260"):
            fastmap.create("lpm_trie", key=key, value="u4", max_entries=1)
    with pytest.raises(TypeError, match="key= needs a dtype"):
        fastmap.create("lpm_trie", value="u4", max_entries=1)
    with pytest.raises(ValueError, match="map_extra"):
        fastmap.create("lpm_trie", key="ipv4", value="u4", max_entries=1, map_extra=1)
    m = make("lpm_trie", key="ipv6", value="u4", max_entries=10)
    m["2001:db8::/32"] = 7
    with fastmap.open(id=m.id) as other:
        assert other.dtype_source == "btf" and other.key_dtype == V6
        assert other["2001:db8::1"] == 7 and list(other) == [IPv6Network("2001:db8::/32")]
    plain = make("lpm_trie", key="ipv4", value="u4", max_entries=10, btf=False)
    with fastmap.open(id=plain.id) as other:
        assert other.key_dtype == "V8"
    with fastmap.open(id=plain.id, key="ipv4") as other:
        assert other.key_dtype == V4
    with pytest.raises(ValueError, match="8 bytes"):
        fastmap.open(id=plain.id, key="ipv6")


@pytest.mark.quick
def test_full(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=5)
    with pytest.raises(MapFull, match="element 5: map is full") as caught:
        m.update_many(hosts(8), np.arange(8))
    assert isinstance(caught.value, BatchError) and caught.value.errno == errno.ENOSPC
    assert caught.value.applied == 5 and len(m) == 5
    with pytest.raises(MapFull):
        m["1.1.1.1"] = 1
    codes = m.update_many(hosts(8), np.arange(8) + 10, errors="return")
    assert codes.tolist() == [0] * 5 + [errno.ENOSPC] * 3
    assert m.lookup_many(hosts(5))[0].tolist() == list(range(10, 15))


def test_flags(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=5)
    m["10.0.0.0/8"] = 1
    with pytest.raises(KeyExists):
        m.update("10.0.0.0/8", 2, flags=NOEXIST)
    with pytest.raises(KeyNotFound):
        m.update("10.0.0.0/9", 2, flags=EXIST)
    assert m.update_many(["10.0.0.0/8", "10.0.0.0/9"], [3, 4], flags=NOEXIST,
                         errors="return").tolist() == [errno.EEXIST, 0]
    assert m.setdefault("10.0.0.0/9", 7) == 4 and m.setdefault("10.0.0.0/10", 7) == 7
    assert {str(k): v for k, v in m.items()} == {
        "10.0.0.0/10": 7, "10.0.0.0/9": 4, "10.0.0.0/8": 1}


def test_taking(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=5)
    m.update({"10.0.0.0/8": 1, "10.0.0.0/16": 2})
    with pytest.raises(NotSupported, match="LPM_TRIE"):
        m.lookup_and_delete("10.0.0.0/8")
    assert not hasattr(m, "lookup_and_delete_many")
    with pytest.raises(KeyError):
        m.pop("10.0.0.0/12")  # covered by the /8, which stays
    assert m.pop("10.0.0.0/12", None) is None and m.pop("10.0.0.0/8") == 1 and len(m) == 1
    assert m.popitem() == (IPv4Network("10.0.0.0/16"), 2)
    with pytest.raises(KeyError):
        m.popitem()


# ---- against a brute-force search --------------------------------------------------------------

lengths = st.sampled_from([0, 1, 2, 7, 8, 9, 15, 24, 31, 32])
numbers = st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**32 - 1, 0x0A000001, 0x0A0000FF])
entries = st.tuples(lengths, numbers | st.integers(0, 7).map(lambda n: n << 29))


def masked(entry: tuple[int, int]) -> tuple[int, int]:
    length, number = entry
    return length, number >> (32 - length) << (32 - length)


def longest(model: dict[tuple[int, int], int], asked: tuple[int, int]) -> int | None:
    for length in range(asked[0], -1, -1):
        if (found := model.get(masked((length, asked[1])))) is not None:
            return found
    return None


def array_of(pairs: list[tuple[int, int]]) -> Any:
    keys = np.zeros(len(pairs), V4)
    keys["prefixlen"] = [length for length, _ in pairs]
    keys["addr"] = np.array([n for _, n in pairs], ">u4").view("u1").reshape(-1, 4)
    return keys


def place(network: IPv4Network) -> tuple[int, int]:
    return network.prefixlen, int(network.network_address)


@settings(max_examples=120, deadline=None)
@given(st.lists(entries, max_size=40), st.lists(entries, max_size=10), st.lists(entries),
       st.sampled_from([1, 2, 3, None]))
def test_against_brute_force(put: list[tuple[int, int]], gone: list[tuple[int, int]],
                             asked: list[tuple[int, int]], chunk: int | None) -> None:
    with fastmap.create("lpm_trie", key="ipv4", value="u4", max_entries=64) as m:
        model = {masked(entry): i for i, entry in enumerate(put)}
        assert m.update_many(array_of(put), np.arange(len(put))) == len(put)
        asked = [*asked, *put, *[(32, number) for _, number in put]]
        gone = [*gone, *put[::3]]
        expected = sum(model.pop(masked(entry), None) is not None for entry in gone)
        assert m.delete_many(array_of(gone)) == expected
        values, found = m.lookup_many(array_of(asked))
        truth = [longest(model, entry) for entry in asked]
        assert found.tolist() == [value is not None for value in truth]
        assert values.tolist() == [value or 0 for value in truth]
        for entry, value in zip(asked[:5], truth, strict=False):
            assert m.get(array_of([entry])[0]) == value
        pairs = [(place(k), v) for batch in m.reader(chunk=chunk) for k, v in batch.items()]
        assert len(pairs) == len(m) == len(model) and dict(pairs) == model
        batch = m.reader(chunk=chunk).drain()
        assert {place(k): v for k, v in batch.items()} == model and not m
        assert batch.complete == COUNTS


# ---- whole reads -------------------------------------------------------------------------------


def by_key(batch: Any) -> dict[bytes, int]:
    assert len(batch.keys) == len(batch.values)
    return dict(zip(map(bytes, batch.keys), batch.values["b"].tolist(), strict=True))


@pytest.mark.quick
@pytest.mark.parametrize("chunk", [1, 3, 7, None])
def test_reads(make: Make, chunk: int | None) -> None:
    m = make("lpm_trie", key="ipv4", value=[("a", "u4"), ("b", "u8")], max_entries=500)
    keys = np.concatenate([hosts(200), hosts(100, 24)])
    values = np.array([(i, 3 * i) for i in range(300)], m.value_dtype)
    m.update_many(keys, values)
    expected = dict(zip(map(bytes, keys), values["b"].tolist(), strict=True))
    reader = m.reader(chunk=chunk)
    for batch in (reader.read(), reader.read(), m.snapshot()):
        assert batch.complete == COUNTS
        assert by_key(batch) == expected
    some = m.reader(chunk=chunk, where=("value.a", ">=", 290), fields=["value.b"]).read()
    assert sorted(some.values["b"].tolist()) == list(range(870, 900, 3))
    assert some.complete == COUNTS
    drained = m.reader(chunk=chunk, fields=["value.b"]).drain()
    assert drained.complete == COUNTS and not m
    assert by_key(drained) == expected
    m.update_many(keys, values)
    assert sum(len(b) for b in m.reader(chunk=chunk).drain_chunks()) == 300 and not m
    m.update_many(keys, values)
    m.clear()
    assert not m and len(m) == 0


@pytest.mark.quick
@pytest.mark.parametrize("chunk", [2, 3, 10])
def test_a_lost_cursor_repeats_nothing(make: Make, chunk: int) -> None:
    """The kernel starts over where the key it stands on is gone: every second read has had it."""
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=1000)
    keys = np.concatenate([hosts(64), hosts(20, 28), hosts(2, 1)])
    m.update_many(keys, np.arange(len(keys)))
    every = set(map(bytes, m.snapshot().keys))
    seen: list[bytes] = []
    for batch in m.reader(chunk=chunk):
        seen += map(bytes, batch.keys)
        m.delete_many(batch.keys[-1:])
    assert len(seen) == len(set(seen)) and set(seen) == every


def test_a_walk_always_ends(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=3000)
    m.update_many(hosts(3000), 1)
    reader, gone = m.reader(chunk=2), 0
    for batch in reader:
        if len(batch) == 2:  # and the kernel starts over, before ever more keys that stay
            gone += m.delete_many(batch.keys[-1:])
    assert not reader._core.exact and 0 < gone < 1400


def test_reads_beside_a_writer(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=20_000)
    keys = np.concatenate([hosts(4000), hosts(4000, 30)])
    stable, fleeting = keys[::2].copy(), keys[1::2].copy()
    m.update_many(stable, 1)
    there, stop = {bytes(k) for k in stable}, threading.Event()

    def churn() -> None:
        while not stop.is_set():
            m.update_many(fleeting, 2)
            m.delete_many(fleeting)

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for chunk in (None, 1000, 100) * 5:
            batch = m.reader(chunk=chunk).read()
            seen = list(map(bytes, batch.keys))
            assert len(seen) == len(set(seen))
            assert there <= set(seen) or not batch.complete
    finally:
        stop.set()
        writer.join()
    assert m.snapshot().complete == COUNTS


def test_two_drains_share_the_entries(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=20_000)
    m.update_many(hosts(20_000), np.arange(20_000))
    taken: list[Any] = []

    def drain() -> None:
        taken.extend(batch.copy() for batch in m.reader(chunk=500).drain_chunks())

    threads = [threading.Thread(target=drain) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not m
    assert np.sort(np.concatenate([b.values for b in taken])).tolist() == list(range(20_000))
    for batch in taken:
        assert (batch.keys["addr"].view(">u4").reshape(-1) == batch.values).all()


def test_a_drain_that_may_not_delete_takes_nothing(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=100)
    m.update_many(hosts(10), 1)
    with fastmap.open(id=m.id, readonly=True) as deaf:
        with pytest.raises(PermissionDenied) as caught:
            deaf.drain()
        assert len(caught.value.batch) == 0 and len(deaf) == 10  # type: ignore[attr-defined]
        with pytest.raises(PermissionDenied):
            deaf.clear()
    with fastmap.open(id=m.id, writeonly=True) as mute, pytest.raises(PermissionDenied):
        mute.drain()


@pytest.mark.quick
def test_without_batch_commands(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=100)

    def check() -> None:
        assert m.update_many(hosts(20), np.arange(20)) == 20 and len(m) == 20
        batch = m.snapshot()
        assert sorted(batch.values.tolist()) == list(range(20)) and not batch.complete
        assert m.delete_many(hosts(5)) == 5 and len(m.drain()) == 15 and not m

    without_batches(check)


# ---- programs ----------------------------------------------------------------------------------


def router(trie: Any) -> Code:
    """Assemble a program that returns what `trie` has for the address in its context; 0: none."""
    a = Assembler()
    a.ldx(8, R1, R1, 0)
    a.stx(4, FP, -4, R1)
    a.st(4, FP, -8, 32)
    a.ld_map(R1, trie)
    a.mov(R2, FP)
    a.add(R2, -8)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.ldx(4, R0, R0, 0)
    a.label("out")
    a.exit()
    return a.assemble()


@pytest.mark.quick
def test_a_program_routes_by_it(make: Make) -> None:
    m = make("lpm_trie", key="ipv4", value="u4", max_entries=100)
    m.update({"10.0.0.0/8": 1, "10.1.0.0/16": 2, "10.1.2.3": 3, "192.0.2.0/24": 4})
    asked = ["10.1.2.3", "10.1.2.4", "10.77.0.1", "192.0.2.255", "192.0.3.0"]
    with Program("raw_tracepoint", router(m)) as program:
        said = [program.run(ip_address(text).packed + bytes(4)) for text in asked]
    assert said == [3, 2, 1, 4, 0] == m.lookup_many(asked)[0].tolist()

"""Element commands, and loops over given keys.

Element commands keep the GIL: they take well under a microsecond, and giving the GIL up for so
little hands a whole switch interval to any other thread that wants it. Loops over many keys give it
up once, and look for signals as they go.
"""

from fastmap import errors
from fastmap._core.rows.convert import copied
from fastmap._core.rows.rows import keys_of
from fastmap.enums import UpdateFlag, running_kernel, version_text

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINVAL, ENOENT, EOPNOTSUPP
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmap._core.rows.codec cimport Codec, PerCpuCodec, bytes_of, data_of
from fastmap._core.rows.columns cimport Columns
from fastmap._core.system.memory cimport Block
from fastmap._core.rows.rows cimport Rows
from fastmap._core.system.syscall cimport Fd, Handle, look_for_signals
from fastmap._core.system.uapi cimport *

cdef enum:
    # Keys and values up to here are encoded on the C stack.
    STACK = 512
    ENOTSUPP = 524
    EITHER = 3
    LOCK = 4
    CPU = 8
    # After a failing element, so many are applied one by one before the next batch command.
    STEPS_AFTER_FAILURE = 32

cdef enum:
    RAISE
    RETURN
    IGNORE

#: What a loop over many elements does about one that fails.
MODES = {"raise": RAISE, "return": RETURN, "ignore": IGNORE}


cdef class MapCore(Handle):
    """The compiled half of `fastmap.Map`: a descriptor, and a codec each for keys and values."""

    def __cinit__(self, Fd fd, int kind, Codec key, Codec value, *args, **kwargs):
        self.fd = fd
        self.kind = kind
        self.key = key
        self.value = value

    # ---- keys ----------------------------------------------------------------------------------

    def key_rows(self, keys):
        """Return given keys as `Rows`, each as the map has it.

        A record whose padding is not zero is the key of these very bytes where the map has that
        one, and otherwise the key with zeros. Bytes and void are what they are.
        """
        cdef Rows rows
        rows, doubtful = keys_of(keys, self.key)
        return rows if doubtful is None else self._settled(rows, doubtful)

    cdef Rows _settled(self, Rows rows, object doubtful):
        owner = copied(rows.owner)
        cdef Rows own = Rows(owner, self.key)
        cdef char *to = data_of(owner)
        cdef const int64_t *which = <const int64_t *>data_of(doubtful)
        cdef Py_ssize_t i, count = len(doubtful)
        cdef Block value = Block(self.value.size)
        cdef int fd = self.fd.acquire()
        cdef uint64_t last = 0
        try:
            with nogil:
                for i in range(count):
                    if i & 255 == 0:
                        look_for_signals(&last)
                    if fm_elem(FM_MAP_LOOKUP_ELEM, fd, to + which[i] * own.size, value.data,
                               0) != 0:
                        own.wipe(to + which[i] * own.size)
        finally:
            self.fd.release()
        return Rows(owner, self.key, True)

    cdef int _encode_key(self, object key, char *dst) except -1:
        """Encode one key as the map has it: see `key_rows`."""
        cdef Block value
        if not self.key.padding:
            return self.key.encode(key, dst)
        if self.key.encode_key(key, dst):
            value = Block(self.value.size)
            if fm_elem(FM_MAP_LOOKUP_ELEM, self.fd.get(), dst, value.data, 0) != 0:
                self.key.clear_padding(dst)
        return 0

    # ---- one element ---------------------------------------------------------------------------

    def lookup_elem(self, key, uint64_t flags):
        return self._take(FM_MAP_LOOKUP_ELEM, key, self.value, self._checked(flags))

    def update_elem(self, key, value, uint64_t flags):
        self._put(key, value, self.value, self._checked(flags))

    def lookup_elem_on(self, uint64_t cpu, key):
        """Look up the value of one CPU alone (BPF_F_CPU, Linux 7.0)."""
        return self._take(FM_MAP_LOOKUP_ELEM, key, (<PerCpuCodec?>self.value).one, CPU | cpu << 32)

    def update_elem_on(self, uint64_t cpu, key, value):
        """Set the value of one CPU alone (BPF_F_CPU, Linux 7.0)."""
        self._put(key, value, (<PerCpuCodec?>self.value).one, CPU | cpu << 32)

    def take_elem(self, key, uint64_t flags):
        return self._take(FM_MAP_LOOKUP_AND_DELETE_ELEM, key, self.value, self._checked(flags))

    cdef uint64_t _checked(self, uint64_t flags) except? 0xffffffff:
        if flags & EITHER == EITHER:  # which per-CPU maps take without a word from Linux 7.0 on
            raise ValueError("flags has both NOEXIST and EXIST")
        if flags & LOCK and not self.lock_flag:
            raise ValueError("flags has LOCK, but the values have no bpf_spin_lock that their "
                             "dtype tells of (fastmap.spin_lock)")
        if flags & ~<uint64_t>(EITHER | LOCK):
            self._check_rare(flags)
        return flags

    def _check_rare(self, uint64_t flags):
        """Refuse flags that this kernel is known not to have; what is unknown, it refuses."""
        for flag in (UpdateFlag.CPU, UpdateFlag.ALL_CPUS):
            if flags & flag and running_kernel() < flag.since:
                raise errors.NotSupported(EINVAL, f"UpdateFlag.{flag.name} needs Linux "
                                                  f"{version_text(flag.since)}")

    cdef object _take(self, int command, object key, Codec codec, uint64_t flags):
        cdef char on_stack[STACK]
        cdef char value_on_stack[STACK]
        cdef char *k = on_stack
        cdef char *v = value_on_stack
        cdef Block key_block, value_block
        cdef long result
        if self.key.size > STACK:
            key_block = Block(self.key.size)
            k = key_block.data
        if codec.size > STACK:
            value_block = Block(codec.size)
            v = value_block.data
        self._encode_key(key, k)
        result = fm_elem(command, self.fd.get(), k if self.key.size else NULL, v,
                         flags | self.lock_flag)
        if result < 0:
            raise self._failed(result, command, key)
        return codec.decode(v)

    cdef int _put(self, object key, object value, Codec codec, uint64_t flags) except -1:
        cdef char on_stack[STACK]
        cdef char value_on_stack[STACK]
        cdef char *k = on_stack
        cdef char *v = value_on_stack
        cdef Block key_block, value_block
        cdef long result
        if self.key.size > STACK:
            key_block = Block(self.key.size)
            k = key_block.data
        if codec.size > STACK:
            value_block = Block(codec.size)
            v = value_block.data
        self._encode_key(key, k)
        codec.encode(value, v)
        result = fm_elem(FM_MAP_UPDATE_ELEM, self.fd.get(), k if self.key.size else NULL, v,
                         flags | self.lock_flag)
        if result < 0:
            raise self._failed(result, FM_MAP_UPDATE_ELEM, key)
        return 0

    cdef int _drop(self, object key) except -1:
        cdef char on_stack[STACK]
        cdef char *k = on_stack
        cdef Block key_block
        cdef long result
        if self.key.size > STACK:
            key_block = Block(self.key.size)
            k = key_block.data
        self._encode_key(key, k)
        result = fm_elem(FM_MAP_DELETE_ELEM, self.fd.get(), k, NULL, 0)
        if result < 0:
            raise self._failed(result, FM_MAP_DELETE_ELEM, key)
        return 0

    def holds(self, key):
        """Tell whether the map has `key`."""
        cdef Block keys = Block(self.key.size)
        cdef Block values = Block(self.value.size)
        cdef long result
        self._encode_key(key, keys.data)
        result = fm_elem(FM_MAP_LOOKUP_ELEM, self.fd.get(), keys.data if self.key.size else NULL,
                         values.data, 0)
        if result < 0 and result != -ENOENT:
            raise self._failed(result, FM_MAP_LOOKUP_ELEM, key)
        return result == 0

    def next_key(self, key=None):
        """BPF_MAP_GET_NEXT_KEY: the key after `key` (None: the first), or None at the end."""
        cdef Block keys = Block(2 * self.key.size)
        cdef char *after = NULL
        cdef char *found = keys.data + self.key.size
        cdef long result
        if key is not None:
            self._encode_key(key, keys.data)
            after = keys.data
        result = fm_elem(FM_MAP_GET_NEXT_KEY, self.fd.get(), after, found, 0)
        if result == -ENOENT:
            return None
        if result < 0:
            raise self._failed(result, FM_MAP_GET_NEXT_KEY, key)
        return self.key.decode(found)

    def pop_entry(self):
        """Delete an arbitrary entry and return its key and value; None where there is none.

        The key goes back to the kernel as it came, with any padding that a program left dirty.
        """
        cdef Block key = Block(self.key.size)
        cdef Block value = Block(self.value.size)
        cdef int command
        cdef long result
        while True:
            command = FM_MAP_GET_NEXT_KEY
            result = fm_elem(command, self.fd.get(), NULL, key.data, 0)
            if result == -ENOENT:
                return None
            if result == 0:
                command = FM_MAP_LOOKUP_AND_DELETE_ELEM
                result = fm_elem(command, self.fd.get(), key.data, value.data, self.lock_flag)
            if result == 0:
                return self.key.decode(key.data), self.value.decode(value.data)
            if result != -ENOENT:  # or someone else was faster
                raise self._failed(result, command, None)

    cdef object _failed(self, long result, int command, object key):
        text = "" if key is None else f"key {key!r}"
        if len(text) > 64:
            text = text[:61] + "..."
        return errors.from_errno(<int>-result, command, self.kind, text)

    def may(self, int command):
        """Ask the kernel whether this handle may use `command`: a batch of nothing."""
        cdef uint32_t count = 0
        cdef long result = fm_batch(command, self.fd.get(), NULL, NULL, NULL, NULL, &count, 0)
        return result == 0

    def permits(self, int command):
        """Ask whether the handle's mode lets it do what `command` does; its type may lack that."""
        cdef uint32_t count = 0
        cdef long result = fm_batch(command, self.fd.get(), NULL, NULL, NULL, NULL, &count, 0)
        return result in (0, -ENOTSUPP, -EOPNOTSUPP)

    # ---- many elements -------------------------------------------------------------------------

    def lookup_rows(self, Rows keys not None, rows, found, Columns columns, int command,
                    uint64_t flags=0):
        """Look up each of `keys`; write rows and a flag each. Return how many were found.

        `rows` is a C-contiguous array of as many bytes as the result has; `found` one of bool.
        Rows of missing keys are zeros. What leaves it carries ``applied``, how many keys were
        worked through.
        """
        cdef int fd
        cdef Py_ssize_t room = bytes_of(rows)
        cdef char *to = data_of(rows) if room else NULL
        cdef char *flag = data_of(found)
        cdef Block key_scratch, row_scratch
        cdef char *k = NULL
        cdef char *v = NULL
        cdef Py_ssize_t done = 0, hits = 0
        cdef Py_ssize_t row = self.value.size if columns is None else columns.out_size
        if room != keys.count * row or bytes_of(found) != keys.count:
            raise ValueError(f"{room} bytes for {keys.count} rows of {row}")
        if not keys.in_place:
            key_scratch = Block(self.key.size)
            k = key_scratch.data
        if columns is not None:
            row_scratch = Block(self.value.size)
            v = row_scratch.data
        flags = self._checked(flags) | self.lock_flag
        fd = self.fd.acquire()
        try:
            with nogil:
                self._look(command, keys, to, flag, columns, k, v, flags, fd, &done, &hits)
        except BaseException as error:
            error.applied = done
            raise
        finally:
            self.fd.release()
        return hits

    cdef int _look(self, int command, Rows keys, char *rows, char *found, Columns columns,
                   char *key_scratch, char *row_scratch, uint64_t flags, int fd,
                   Py_ssize_t *done, Py_ssize_t *hits) except -1 nogil:
        cdef Py_ssize_t i, count = keys.count, size = self.value.size
        cdef Py_ssize_t step = size
        cdef bint plain = columns is None
        cdef bint in_place = keys.in_place
        cdef const char *key
        cdef char *row
        cdef long result
        cdef uint64_t last = 0
        if not plain:
            step = columns.out_size
        for i in range(count):
            if i & 255 == 0:
                done[0] = i
                look_for_signals(&last)
            if in_place:
                key = keys.base + i * keys.row_stride
            else:
                keys.put(i, key_scratch)
                key = key_scratch
            row = rows + i * step if plain else row_scratch
            result = fm_elem(command, fd, key, row, flags)
            if result == 0:
                found[i] = 1
                hits[0] += 1
                if not plain:
                    columns.fill(row, rows + i * step)
            elif result == -ENOENT:
                found[i] = 0
                memset(rows + i * step, 0, step)
            else:
                done[0] = i
                with gil:
                    raise errors.batch_error(<int>-result, command, self.kind, i, i)
        done[0] = count
        return 0

    def apply_rows(self, int command, Rows keys not None, Rows values, uint64_t flags, str mode,
                   errnos=None, Py_ssize_t chunk=0):
        """Update or delete (`command`: the batch command) at each of `keys`, in their order.

        Returns how many were applied. "raise" stops at the first that fails; "return" writes an
        errno each to `errnos`; "ignore" skips keys that are missing. What leaves it carries
        ``applied``.
        """
        cdef int fd
        cdef Block key_scratch, row_scratch
        cdef Py_ssize_t applied = 0
        cdef char *k = NULL
        cdef char *v = NULL
        cdef int32_t *codes = NULL
        cdef int how = MODES[mode]
        if values is not None and values.count != keys.count:
            raise ValueError(f"{keys.count} keys, but {values.count} values")
        if values is not None:  # deletes know no flags
            flags = self._checked(flags) | self.lock_flag
        if errnos is not None:
            if errnos.nbytes != keys.count * 4:
                raise ValueError(f"{errnos.nbytes} bytes for {keys.count} errnos")
            codes = <int32_t *>data_of(errnos)
        if chunk <= 0:
            chunk = max(256, min(32768, (4 << 20) // (self.key.size + self.value.size)))
        chunk = min(chunk, max(1, 0xffffffff // max(self.key.size, self.value.size)))
        if not keys.packed:
            key_scratch = Block(min(chunk, keys.count) * self.key.size)
            k = key_scratch.data
        if values is not None and not values.packed:
            row_scratch = Block(min(chunk, keys.count) * self.value.size)
            v = row_scratch.data
        fd = self.fd.acquire()
        try:
            with nogil:
                self._apply(command, keys, values, flags, how, codes, chunk, k, v, fd, &applied)
            # A Ctrl-C that came meanwhile is raised here, where `applied` is at hand.
            PyErr_CheckSignals()
        except BaseException as error:
            error.applied = applied
            raise
        finally:
            self.fd.release()
        return applied

    cdef int _apply(self, int command, Rows keys, Rows values, uint64_t flags, int mode,
                    int32_t *errnos, Py_ssize_t chunk, char *key_scratch, char *row_scratch,
                    int fd, Py_ssize_t *applied) except -1 nogil:
        cdef int one = (FM_MAP_UPDATE_ELEM if command == FM_MAP_UPDATE_BATCH
                        else FM_MAP_DELETE_ELEM)
        cdef Py_ssize_t count = keys.count, size = keys.size, row = self.value.size
        cdef Py_ssize_t start = 0, stop, i = 0, singles = 0
        cdef char *k = NULL
        cdef char *v = NULL
        cdef uint32_t todo, offered
        cdef long result
        cdef uint64_t last = 0
        cdef bint by_batch = not self.no_batch and flags & ~<uint64_t>LOCK == 0
        while i < count:
            # The chunk [start, stop) lies at k and v as the kernel wants it.
            start = i
            stop = min(start + chunk, count)
            k = _chunk(keys, start, stop, key_scratch)
            if values is not None:
                v = _chunk(values, start, stop, row_scratch)
            look_for_signals(&last)
            while i < stop:
                if by_batch and singles == 0:
                    offered = todo = <uint32_t>(stop - i)
                    result = fm_batch(command, fd, NULL, NULL, k + (i - start) * size,
                                      v + (i - start) * row if v != NULL else NULL, &todo, flags)
                    if result < 0 and todo == offered:
                        todo = 0  # the kernel refused the whole, and left the count alone
                        if result in (-EINVAL, -ENOTSUPP, -EOPNOTSUPP):
                            # No such batch command here, or a bad element: one by one tells.
                            # An array takes updates in a batch, but no deletes.
                            self.no_batch = (
                                result == -ENOTSUPP and command == FM_MAP_UPDATE_BATCH)
                            by_batch = False
                            continue
                else:
                    if (i - start) & 255 == 255:
                        look_for_signals(&last)
                    todo = 1
                    result = fm_elem(one, fd, k + (i - start) * size,
                                     v + (i - start) * row if v != NULL else NULL, flags)
                    if result < 0:
                        todo = 0
                    elif singles:
                        singles -= 1
                i += todo
                applied[0] += todo
                if result >= 0:
                    continue
                if mode == RETURN:
                    errnos[i] = <int32_t>-result
                elif mode == RAISE or result != -ENOENT:
                    with gil:
                        raise errors.batch_error(<int>-result, command, self.kind, applied[0], i)
                i += 1
                singles = STEPS_AFTER_FAILURE
        return 0


cdef char *_chunk(Rows rows, Py_ssize_t start, Py_ssize_t stop, char *scratch) noexcept nogil:
    """Return where rows [start, stop) lie as the kernel wants them, one behind the other."""
    cdef Py_ssize_t i
    if rows.packed:
        return <char *>rows.base + start * rows.size
    for i in range(start, stop):
        rows.put(i, scratch + (i - start) * rows.size)
    return scratch


cdef class KeyedCore(MapCore):
    """A map with keys: what `m[key]` and its kin are, without a Python function in between."""

    def __getitem__(self, key):
        return self._take(FM_MAP_LOOKUP_ELEM, key, self.value, 0)

    def __setitem__(self, key, value):
        self._put(key, value, self.value, 0)

    def __delitem__(self, key):
        self._drop(key)

    def __contains__(self, key):
        return self.holds(key)

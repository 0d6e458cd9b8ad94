"""Entries as JSON text, a chunk at a time, without the GIL and without an object per entry.

What a dtype means in pieces of text is worked out once, in `fastmap.text.json`.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memset, strlen

from fastmap._core.rows.codec cimport data_of
from fastmap._core.system.memory cimport Block


cdef extern from "Python.h":
    double PyFloat_Unpack2(const char *data, int little) except? -1
    double PyFloat_Unpack4(const char *data, int little) except? -1
    double PyFloat_Unpack8(const char *data, int little) except? -1
    char *PyOS_double_to_string(double number, char code, int precision, int flags,
                                int *kind) except NULL
    void PyMem_Free(void *memory)
    int Py_DTSF_ADD_DOT_0
    int PY_BIG_ENDIAN

cdef enum:
    UNSIGNED
    SIGNED
    BOOLEAN
    FLOAT
    TEXT
    HEX
    #: Text is handed on in pieces of this size, or of the one row that is larger.
    ROOM = 1 << 20
    #: Characters of a number at most: -1.7976931348623157e+308, and a comma.
    NUMBER = 26

KINDS = {"unsigned": UNSIGNED, "signed": SIGNED, "boolean": BOOLEAN, "float": FLOAT, "text": TEXT,
         "hex": HEX}

#: Bytes that numbers have.
_SIZES = {"float": (2, 4, 8), **dict.fromkeys(("unsigned", "signed", "boolean"), (1, 2, 4, 8))}

cdef const char *_HEX = b"0123456789abcdef"
# 00 to 99: two digits for one division.
cdef bytes _PAIRS_OWNER = b"".join(b"%02d" % i for i in range(100))
cdef const char *_PAIRS = _PAIRS_OWNER


cdef char *_put_unsigned(uint64_t number, char *out) noexcept nogil:
    cdef char digits[20]
    cdef int at = 20
    while number >= 100:
        at -= 2
        memcpy(digits + at, _PAIRS + 2 * (number % 100), 2)
        number //= 100
    if number >= 10:
        at -= 2
        memcpy(digits + at, _PAIRS + 2 * number, 2)
    else:
        at -= 1
        digits[at] = <char>(48 + number)
    memcpy(out, digits + at, 20 - at)
    return out + 20 - at


cdef Py_ssize_t _sequence(const unsigned char *src, Py_ssize_t size, bint *valid) noexcept nogil:
    """Return how many bytes the UTF-8 sequence at `src` has; of a bad one, those to replace."""
    cdef unsigned char lead = src[0], low = 0x80, high = 0xbf
    cdef Py_ssize_t more, at
    valid[0] = False
    if not 0xc2 <= lead <= 0xf4:
        return 1
    more = 1 if lead < 0xe0 else 2 if lead < 0xf0 else 3
    # Nothing overlong, no surrogates, nothing beyond U+10FFFF.
    if lead == 0xe0:
        low = 0xa0
    elif lead == 0xed:
        high = 0x9f
    elif lead == 0xf0:
        low = 0x90
    elif lead == 0xf4:
        high = 0x8f
    for at in range(1, more + 1):
        if at == size or not low <= src[at] <= high:
            return at
        low, high = 0x80, 0xbf
    valid[0] = True
    return more + 1


cdef char *_put_text(const char *src, Py_ssize_t size, char *out) noexcept nogil:
    """Write a string up to its first NUL; what is no UTF-8 becomes U+FFFD, as Python does it."""
    cdef const unsigned char *data = <const unsigned char *>src
    cdef const void *end = memchr(src, 0, size)
    cdef Py_ssize_t at = 0, length
    cdef unsigned char one
    cdef bint valid = False
    if end != NULL:
        size = <const char *>end - src
    out[0] = b'"'
    out += 1
    while at < size:
        one = data[at]
        if one >= 0x80:
            length = _sequence(data + at, size - at, &valid)
            if valid:
                memcpy(out, src + at, length)
                out += length
            else:
                memcpy(out, b"\xef\xbf\xbd", 3)
                out += 3
            at += length
            continue
        if one < 0x20:
            memcpy(out, b"\\u00", 4)
            out[4] = _HEX[one >> 4]
            out[5] = _HEX[one & 15]
            out += 6
        else:
            if one == 0x22 or one == 0x5c:
                out[0] = b"\\"
                out += 1
            out[0] = <char>one
            out += 1
        at += 1
    out[0] = b'"'
    return out + 1


cdef char *_put_hex(const char *src, Py_ssize_t size, char *out) noexcept nogil:
    cdef Py_ssize_t i
    out[0] = b'"'
    out += 1
    for i in range(size):
        out[0] = _HEX[<unsigned char>src[i] >> 4]
        out[1] = _HEX[<unsigned char>src[i] & 15]
        out += 2
    out[0] = b'"'
    return out + 1


cdef char *_put_float(const char *src, Py_ssize_t size, bint swapped, char *out) except NULL:
    """Write the shortest decimal that means this double; null for what JSON has no word for."""
    cdef int little = swapped if PY_BIG_ENDIAN else not swapped
    cdef double number
    cdef char *text
    cdef size_t length
    if size == 2:
        number = PyFloat_Unpack2(src, little)
    elif size == 4:
        number = PyFloat_Unpack4(src, little)
    else:
        number = PyFloat_Unpack8(src, little)
    if not isfinite(number):
        memcpy(out, b"null", 4)
        return out + 4
    text = PyOS_double_to_string(number, b"r", 0, Py_DTSF_ADD_DOT_0, NULL)
    length = strlen(text)
    memcpy(out, text, length)
    PyMem_Free(text)
    return out + length


cdef uint64_t _unsigned(const char *src, Py_ssize_t size, bint swapped) noexcept nogil:
    cdef unsigned char turned[8]
    cdef uint16_t two = 0
    cdef uint32_t four = 0
    cdef uint64_t eight = 0
    cdef Py_ssize_t i
    if swapped:
        memset(turned, 0, sizeof(turned))
        for i in range(size):
            turned[i] = <unsigned char>src[size - 1 - i]
        src = <const char *>turned
    if size == 8:
        memcpy(&eight, src, 8)
        return eight
    if size == 4:
        memcpy(&four, src, 4)
        return four
    if size == 2:
        memcpy(&two, src, 2)
        return two
    return <unsigned char>src[0]


cdef char *_put_signed(uint64_t number, Py_ssize_t size, char *out) noexcept nogil:
    cdef int64_t signed
    if size == 8:
        signed = <int64_t>number
    elif size == 4:
        signed = <int32_t>number
    elif size == 2:
        signed = <int16_t>number
    else:
        signed = <int8_t>number
    if signed >= 0:
        return _put_unsigned(<uint64_t>signed, out)
    out[0] = b"-"
    return _put_unsigned(0 - <uint64_t>signed, out + 1)  # also of -2 ** 63


cdef char *_put_item(const Piece *piece, const char *src, char *out) except NULL nogil:
    cdef uint64_t number
    if piece.kind == TEXT:
        return _put_text(src, piece.size, out)
    if piece.kind == HEX:
        return _put_hex(src, piece.size, out)
    if piece.kind == FLOAT:
        with gil:
            return _put_float(src, piece.size, piece.swapped, out)
    number = _unsigned(src, piece.size, piece.swapped)
    if piece.kind == UNSIGNED:
        return _put_unsigned(number, out)
    if piece.kind == SIGNED:
        return _put_signed(number, piece.size, out)
    if number:
        memcpy(out, b"true", 4)
        return out + 4
    memcpy(out, b"false", 5)
    return out + 5


cdef class JsonRows:
    """Writes entries as pieces of JSON: what stands before a field, and the field.

    Parameters
    ----------
    pieces : sequence of tuple
        ``(before, kind, on_value, swapped, src, size, count, step)``: the text before it; one of
        `KINDS`; whether it lies in the value, and at which byte; bytes of one item; how many items
        make a list, and how many bytes they are apart. A count of -1 is one item, and no list.
    last : bytes
        What ends an entry.
    key_size, value_size : int
        Bytes of a key, and of what belongs to an entry in an array of values.

    Attributes
    ----------
    largest : int
        Bytes that an entry takes at most.
    """

    def __init__(self, pieces, bytes last not None, Py_ssize_t key_size, Py_ssize_t value_size):
        cdef Py_ssize_t at = 0, each, items
        cdef Piece *piece
        pieces = list(pieces)
        self.owner = Block(max(len(pieces), 1) * sizeof(Piece))
        self.pieces = <Piece *>self.owner.data
        self.literals = b"".join(given[0] for given in pieces)
        self.words = self.literals
        self.last = last
        self.key_size, self.value_size = key_size, value_size
        self.length = len(pieces)
        self.largest = len(self.literals) + len(last)
        for i, (before, kind, on_value, swapped, src, size, count, step) in enumerate(pieces):
            piece = &self.pieces[i]
            piece.before, piece.before_size = at, len(before)
            at += len(before)
            piece.kind, piece.on_value, piece.swapped = KINDS[kind], on_value, swapped
            piece.src, piece.size, piece.count, piece.step = src, size, count, step
            items = 1 if count < 0 else count
            if (src < 0 or size < 0 or step < 0 or count < -1
                    or src + (max(items, 1) - 1) * step + size > (
                        value_size if on_value else key_size)):
                raise ValueError(f"piece {i} lies outside of its {'value' if on_value else 'key'}")
            if size not in _SIZES.get(kind, (size,)):
                raise ValueError(f"piece {i}: no {kind} has {size} bytes")
            each = 6 * size + 3 if kind in ("text", "hex") else NUMBER
            self.largest += 2 + items * each
        self.text = Block(max(ROOM, self.largest))

    cdef char *put(self, const char *key, const char *value, char *out) except NULL nogil:
        cdef const char *src
        cdef const Piece *piece
        cdef Py_ssize_t i, item
        for i in range(self.length):
            piece = &self.pieces[i]
            memcpy(out, self.words + piece.before, piece.before_size)
            out += piece.before_size
            src = (value if piece.on_value else key) + piece.src
            if piece.count < 0:
                out = _put_item(piece, src, out)
                continue
            out[0] = b"["
            out += 1
            for item in range(piece.count):
                if item:
                    out[0] = b","
                    out += 1
                out = _put_item(piece, src + item * piece.step, out)
            out[0] = b"]"
            out += 1
        return out

    def write(self, keys, values, Py_ssize_t start):
        """Write rows from `start` on, as many as there is room for.

        Returns
        -------
        stop : int
            The first row that was not written.
        text : memoryview
            The next call overwrites it.
        """
        cdef Py_ssize_t rows = keys.shape[0], at = start
        cdef Py_ssize_t key_step = keys.strides[0], value_step = values.strides[0]
        cdef Py_ssize_t last_size = len(self.last)
        cdef const char *last = <const char *>self.last
        cdef const char *key = data_of(keys)
        cdef const char *value = data_of(values)
        cdef char *out = self.text.data
        cdef char *full = out + self.text.size - self.largest
        if values.shape[0] != rows or not 0 <= start <= rows:
            raise ValueError(f"{rows} keys, {values.shape[0]} values, from {start} on")
        if rows and (abs(key_step) < self.key_size or abs(value_step) < self.value_size):
            raise ValueError("keys or values are smaller than the pieces need")
        PyErr_CheckSignals()
        with nogil:
            while at < rows and out <= full:
                out = self.put(key + at * key_step, value + at * value_step, out)
                memcpy(out, last, last_size)
                out += last_size
                at += 1
        return at, memoryview(self.text)[:out - self.text.data]

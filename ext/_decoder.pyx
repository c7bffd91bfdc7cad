# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: depends = ext/layout.h ext/kernels.h ext/framing.h ext/decoder.h ext/sums.h
"""The compiled decoder: `ext.reference.decode` and its kin, equal bit for bit; core in decoder.h.

Python objects are touched a frame, never a reading: a tuple holds the frames alive while the core
runs without the GIL, records are written straight into their bytes, rows into buffers that the
next batch reuses and that are copied out once.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from ext.layout import Decoded

cdef extern from "decoder.h" nogil:
    ctypedef struct vst_frame:
        const uint8_t *at
        size_t len
    ctypedef struct vst_place:
        int32_t boot
        int32_t spot
        int64_t from_ms
        int64_t until_ms
    ctypedef struct vst_record:
        pass
    ctypedef struct vst_buffer:
        uint8_t *at
        size_t len
        size_t cap
    ctypedef struct vst_out:
        vst_buffer readings
        vst_buffer presses
        vst_buffer count_deltas
        vst_buffer press_deltas
    ctypedef struct vst_kernel:
        const char *name
        uint32_t (*crc)(const uint8_t *p, size_t n) noexcept nogil
    const vst_kernel kernel_portable
    const vst_kernel *vst_init()
    void vst_rewind(vst_out *o)
    void vst_release(vst_out *o)
    int check_header(const vst_kernel *k, vst_frame f)
    int vst_decode(const vst_kernel *k, vst_out *o, const vst_frame *frames,
                   const vst_place *places, size_t n, vst_record *records)
    int VST_TOO_LARGE

cdef extern from "sums.h" nogil:
    ctypedef struct vst_count_delta:
        int32_t boot
        int64_t bucket_ms
    ctypedef struct vst_count_row:
        pass
    ctypedef struct count_key:
        pass
    const int64_t BUCKET_MS
    size_t vst_sum_counts(const vst_count_delta *deltas, const uint8_t *late, size_t n,
                          count_key *keys, vst_count_row *rows)

cdef extern from "Python.h":
    tuple PySequence_Tuple(object frames)
    Py_ssize_t PyTuple_GET_SIZE(tuple held)
    PyObject *PyTuple_GET_ITEM(tuple held, Py_ssize_t i)  # borrowed

cdef const vst_kernel *BEST = vst_init()
cdef const vst_kernel *kernel = BEST
cdef vst_out *spare = NULL  # one batch's buffers, kept warm; taken and returned under the GIL
cdef size_t SPARE_BYTES = 32 << 20  # larger ones are freed


def decode(frames, places):
    """Decode `frames`, the i-th into `places[i]`; never raises for what a frame holds."""
    return decode_packed(frames, pack_places(places))


def decode_packed(frames, bytes packed):
    """Decode `frames` with `packed` places, as `pack_places` made them."""
    cdef tuple held = PySequence_Tuple(frames)
    cdef size_t n = PyTuple_GET_SIZE(held)
    if PyBytes_GET_SIZE(packed) != <Py_ssize_t>(n * sizeof(vst_place)):
        raise ValueError(f"{n} frames, {len(packed) / sizeof(vst_place):g} places")
    cdef bytes records = PyBytes_FromStringAndSize(NULL, n * sizeof(vst_record))
    cdef vst_frame *at = _gather(held, n)
    cdef const vst_place *where = <const vst_place *>PyBytes_AS_STRING(packed)
    cdef vst_record *into = <vst_record *>PyBytes_AS_STRING(records)
    cdef vst_out *out = NULL
    cdef int error
    try:
        out = _take()
        with nogil:
            error = vst_decode(kernel, out, at, where, n, into)
        if error == VST_TOO_LARGE:
            raise OverflowError("a batch's rows are at most 4 GiB; give fewer frames")
        if error:
            raise MemoryError
        return Decoded(records, _copy(&out.readings), _copy(&out.presses),
                       _copy(&out.count_deltas), _copy(&out.press_deltas))
    finally:
        free(at)
        _give(out)


def pack_places(places):
    """Return `places` as `decode_packed` takes them: boot, spot, from_ms, until_ms as "<iiqq"."""
    cdef tuple held = PySequence_Tuple(places)
    cdef Py_ssize_t i, n = PyTuple_GET_SIZE(held)
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, n * sizeof(vst_place))
    cdef vst_place *out = <vst_place *>PyBytes_AS_STRING(packed)
    cdef PyObject *last = NULL
    cdef object boot, spot, from_ms, until_ms
    for i in range(n):
        if i and PyTuple_GET_ITEM(held, i) == last:  # one Place shared by a run of frames
            out[i] = out[i - 1]
            continue
        last = PyTuple_GET_ITEM(held, i)
        boot, spot, from_ms, until_ms = <object>last
        out[i].boot = boot
        out[i].spot = spot
        out[i].from_ms = from_ms
        out[i].until_ms = until_ms
    return packed


def scan(frames):
    """Return (reason, kind, boot_id, seq, ordinal) a frame, from its checked header alone."""
    cdef tuple held = PySequence_Tuple(frames)
    cdef Py_ssize_t i, n = PyTuple_GET_SIZE(held)
    cdef vst_frame *at = _gather(held, n)
    cdef int reason
    cdef const uint8_t *head
    cdef list seen = [None] * n
    try:
        for i in range(n):
            reason = check_header(kernel, at[i])
            head = at[i].at
            if reason:
                seen[i] = (reason, 0, 0, 0, 0)
            else:
                seen[i] = (0, head[3], _u64(head + 8), _u32(head + 16), _u32(head + 20))
        return seen
    finally:
        free(at)


def sum_counts(bytes deltas, dict late):
    """Return `deltas` summed by spot and bucket, in that order, as COUNT_ROWs."""
    cdef size_t i, made, n = PyBytes_GET_SIZE(deltas) // sizeof(vst_count_delta)
    if PyBytes_GET_SIZE(deltas) != <Py_ssize_t>(n * sizeof(vst_count_delta)):
        raise ValueError(f"{len(deltas)} bytes are no whole deltas")
    cdef const vst_count_delta *given = <const vst_count_delta *>PyBytes_AS_STRING(deltas)
    cdef int64_t until_ms = 0
    cdef int32_t boot = 0
    cdef size_t size = sizeof(vst_count_row) + sizeof(count_key) + 1
    cdef uint8_t *room = <uint8_t *>malloc((n or 1) * size)
    if room == NULL:
        raise MemoryError
    cdef count_key *keys = <count_key *>room
    cdef vst_count_row *rows = <vst_count_row *>(keys + n)
    cdef uint8_t *flags = <uint8_t *>(rows + n)
    try:
        for i in range(n):
            if i == 0 or given[i].boot != boot:  # they come boot by boot
                boot = given[i].boot
                until_ms = late[boot]
            flags[i] = given[i].bucket_ms + BUCKET_MS <= until_ms
        with nogil:
            made = vst_sum_counts(given, flags, n, keys, rows)
        return PyBytes_FromStringAndSize(<char *>rows, made * sizeof(vst_count_row))
    finally:
        free(room)


def crc32c(const uint8_t[::1] data):
    """Return the CRC-32C of `data`; of b"123456789" it is 0xE3069283."""
    cdef size_t n = data.shape[0]
    return kernel.crc(&data[0], n) if n else 0


def use_kernel(str name):
    """Select "best" or "portable" instructions, for tests; return what is now in use."""
    global kernel
    if name not in ("best", "portable"):
        raise ValueError(f"expected best or portable, got {name!r}")
    kernel = &kernel_portable if name == "portable" else BEST
    return kernel.name.decode()


cdef inline uint32_t _u32(const uint8_t *p) noexcept:
    return p[0] | p[1] << 8 | p[2] << 16 | <uint32_t>p[3] << 24


cdef inline uint64_t _u64(const uint8_t *p) noexcept:
    return _u32(p) | <uint64_t>_u32(p + 4) << 32


cdef vst_frame *_gather(tuple held, size_t n) except NULL:
    """Return each frame's address and length; `held` must outlive them."""
    cdef vst_frame *at = <vst_frame *>malloc((n or 1) * sizeof(vst_frame))
    cdef PyObject *item
    cdef size_t i
    if at == NULL:
        raise MemoryError
    for i in range(n):
        item = PyTuple_GET_ITEM(held, i)
        if not isinstance(<object>item, bytes):
            free(at)
            raise TypeError(f"a frame is bytes, got {type(<object>item).__name__}")
        at[i].at = <const uint8_t *>PyBytes_AS_STRING(<object>item)
        at[i].len = PyBytes_GET_SIZE(<object>item)
    return at


cdef vst_out *_take() except NULL:
    """Return empty buffers: the spare ones, or new if another thread has those."""
    global spare
    cdef vst_out *out = spare
    spare = NULL
    if out == NULL:
        out = <vst_out *>calloc(1, sizeof(vst_out))
        if out == NULL:
            raise MemoryError
    vst_rewind(out)
    return out


cdef void _give(vst_out *out) noexcept:
    global spare
    if out == NULL:
        return
    held = out.readings.cap + out.presses.cap + out.count_deltas.cap + out.press_deltas.cap
    if spare == NULL and held <= SPARE_BYTES:
        spare = out
    else:
        vst_release(out)


cdef bytes _copy(vst_buffer *buffer):
    return PyBytes_FromStringAndSize(<char *>buffer.at, buffer.len)

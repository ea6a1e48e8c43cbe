"""The bytes that a connection has still to send, in order.

Theory of operation
-------------------
The buffer is a queue of vectors (address and length), in the form that sendmsg(2) takes. An owner
for each vector keeps its memory alive until the socket has taken the bytes.

Small data is copied to the end of a *chunk*. As long as the last vector ends where the free room of
the chunk begins (`tail_is_open`), it just grows: so many small messages become one vector. A frame
above the inline limit gets a vector on its own memory. That closes the tail.

A message is queued as prefix, table, descriptors, header and frames. Each frame is offered by the
first path that takes it, or else follows on the stream. Frames on offer are not queued: they go to
`offered`, and the caller keeps a lease on them.

A record is queued whole or not at all, since an incomplete one would end the connection. `_mark`
notes the state before it, and `_roll_back` returns to that state after an error, such as a lack of
memory.

A native thread may send the vectors while further records are queued. It has a copy of those that
were there when it began. `seal` closes the tail before, so that none of them grows meanwhile.

An empty buffer gives its chunk to the next comm that sends (`spare_chunk`): an idle comm has none.
"""

cimport cython
from cpython.buffer cimport PyBuffer_IsContiguous, PyObject_CheckBuffer
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from dask_fabric.memory.pool cimport Buffer, allocate, count_use
from dask_fabric.linux cimport iovec
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.path cimport Path
from dask_fabric.wire.records cimport (
    CUDA_MEMORY, ENTRY_BYTES, FRAMES, HOST_MEMORY, MESSAGE, PREFIX_BYTES, STREAM, pack_entry,
    pack_prefix,
)

from dask_fabric.errors import MessageTooLargeError
from dask_fabric.wire.path import NO_PATHS

cdef enum:
    CHUNK_BYTES = 32 << 10
    COPIED_BYTES = 4 << 10      # parts of a large message up to this size get no vector
    KEPT_VECTOR_COUNT = 8

new_owners = list           # a seam for tests, which let it run out of memory

cdef Buffer spare_chunk = None  # an empty chunk for the next comm that sends


@cython.auto_pickle(False)
@cython.final
cdef class DeviceFrame:
    """A frame of device memory, and its address."""


@cython.auto_pickle(False)
@cython.final
cdef class SendBuffer:
    """Bytes and frames that wait for the socket."""

    def __cinit__(self, Py_ssize_t inline_bytes=0):
        self.inline_bytes = inline_bytes
        self.paths = NO_PATHS
        self.offer_bytes = PY_SSIZE_T_MAX
        self.owners = new_owners()
        self.frame_count_limit = self.header_bytes_limit = self.message_bytes_limit = PY_SSIZE_T_MAX

    def __dealloc__(self):
        free(self.vectors)

    def __sizeof__(self):
        """Includes its own buffers, but not the frames."""
        cdef Py_ssize_t nbytes = self.capacity * sizeof(iovec) + self.owners.__sizeof__()
        if self.chunk is not None:
            nbytes += self.chunk.nbytes
        return object.__sizeof__(self) + nbytes

    cdef Py_ssize_t put_message(self, header, list frames) except -1:
        """Queue one message.

        Up to `inline_bytes` it is copied whole. Frames of a larger message are sent from their own
        memory, except very small ones. Frames that a path takes go to `offered` instead: the caller
        keeps a lease on them.

        Returns
        -------
        int
            Bytes of the whole message.
        """
        cdef Py_ssize_t frame_count = len(frames), inline_bytes = self.inline_bytes
        cdef Py_ssize_t header_bytes, total_bytes
        cdef list views = frames
        cdef Buffer chunk = self.chunk
        cdef Mark mark
        if frames and self.span_of is None:
            views = [_bytes_of(frame) for frame in frames]
        elif frames:
            views = [self._view_of(frame) for frame in frames]
        header = _bytes_of(header)
        total_bytes = header_bytes = PyMemoryView_GET_BUFFER(header).len
        for view in views:
            total_bytes += _nbytes_of(view)
        self.check_limits(frame_count, header_bytes, total_bytes)
        mark = self._mark()
        try:
            self.offered = self._put_table(views, header_bytes)
            if self.offered is not None:
                self._put_descriptors(self.offered)
                total_bytes -= self.offered.nbytes
            if total_bytes > inline_bytes:
                inline_bytes = min(inline_bytes, <Py_ssize_t> COPIED_BYTES)
            self._put(header, inline_bytes)
            for view in views:
                if type(view) is memoryview:    # the others are offered, or empty device frames
                    self._put(view, inline_bytes)
        except BaseException:
            self._roll_back(&mark, chunk)
            raise
        if self.offered is not None:
            total_bytes += self.offered.nbytes
        self.message_count += 1
        return PREFIX_BYTES + frame_count * ENTRY_BYTES + total_bytes

    cdef FrameSet _put_table(self, list views, Py_ssize_t header_bytes):
        """Queue prefix and table; frames to be offered are moved from `views` to the result."""
        cdef FrameSet offered = None
        cdef Py_ssize_t index, frame_count = len(views)
        cdef Slot slot
        cdef Path path
        cdef char *out = self._reserve(PREFIX_BYTES + frame_count * ENTRY_BYTES)
        pack_prefix(out, MESSAGE, frame_count, header_bytes, self.message_count)
        out += PREFIX_BYTES
        for index, view in enumerate(views):
            path = self._choose(view, &slot)
            if path is None:
                pack_entry(out, slot.nbytes, STREAM, slot.memory, 0)
            else:
                pack_entry(out, slot.nbytes, path.number, slot.memory, path.descriptor_bytes)
                if offered is None:
                    offered = FrameSet(self.message_count)
                slot.index = index
                offered.add(view, &slot)
                views[index] = None
            out += ENTRY_BYTES
        return offered

    cdef Mark _mark(self) noexcept:
        """The state before a record, for `_roll_back`."""
        cdef Py_ssize_t tail_bytes = 0
        if self.tail_is_open:
            tail_bytes = self.vectors[self.last - 1].iov_len
        return Mark(
            self.last - self.first, tail_bytes, self.pending_bytes, self.chunk_used_bytes,
            self.tail_is_open,
        )

    cdef _roll_back(self, const Mark *mark, Buffer chunk):
        """Remove a record that could not be queued whole."""
        self.offered = None
        while self.last - self.first > mark.vector_count:
            self.last -= 1
            self.owners[self.last] = None
        self.chunk = chunk
        self.pending_bytes = mark.pending_bytes
        self.chunk_used_bytes = mark.chunk_used_bytes
        self.tail_is_open = mark.tail_is_open
        if self.tail_is_open:
            self.vectors[self.last - 1].iov_len = mark.tail_bytes

    cdef Path _choose(self, view, Slot *slot):
        """Fill the frame's slot, and choose the path to offer it by; None for the stream."""
        cdef Path path
        slot.path = STREAM
        if type(view) is DeviceFrame:
            slot.memory = CUDA_MEMORY
            slot.nbytes = (<DeviceFrame> view).nbytes
            slot.data = <char *> (<DeviceFrame> view).address
        else:
            slot.memory = HOST_MEMORY
            slot.nbytes = PyMemoryView_GET_BUFFER(view).len
            slot.data = <char *> PyMemoryView_GET_BUFFER(view).buf
            if <Py_ssize_t> slot.nbytes < self.offer_bytes:
                return None         # nearly always
        for path in self.paths:
            if path.takes(slot):
                slot.path = path.number
                path.describe(slot)
                return path
        return None

    cdef use(self, list paths, span_of):
        """Offer frames by these paths from now on; device frames only if `span_of` is given."""
        cdef Path path
        self.paths = paths
        self.span_of = span_of
        self.offer_bytes = PY_SSIZE_T_MAX
        for path in paths:
            if path.memory_kinds >> HOST_MEMORY & 1:
                self.offer_bytes = min(self.offer_bytes, path.least_bytes)

    cdef _view_of(self, frame):
        """A view of a host frame (`_bytes_of`), or a `DeviceFrame`."""
        cdef DeviceFrame device
        span = None if PyObject_CheckBuffer(frame) else self.span_of(frame)
        if span is None:
            return _bytes_of(frame)
        device = DeviceFrame.__new__(DeviceFrame)
        device.frame = frame
        device.address, device.nbytes = span[0], span[1]
        return device

    cdef respect(self, limits):
        """Apply the limits that the peer announced; without one, everything is accepted."""
        self.frame_count_limit = _limit(limits, "frames")
        self.header_bytes_limit = _limit(limits, "header")
        self.message_bytes_limit = _limit(limits, "message")

    cdef check_limits(self, Py_ssize_t frame_count, Py_ssize_t header_bytes, Py_ssize_t nbytes):
        """Raise for a message above the peer's limits: sending it would end the connection."""
        if frame_count > self.frame_count_limit:
            raise _excess("frames", frame_count, self.frame_count_limit, "frames")
        if header_bytes > self.header_bytes_limit:
            raise _excess("bytes of header", header_bytes, self.header_bytes_limit, "header")
        if nbytes > self.message_bytes_limit:
            raise _excess("bytes", nbytes, self.message_bytes_limit, "message")

    cdef _put_descriptors(self, FrameSet frames):
        """Queue the descriptors of the frames on offer, which follow the table."""
        cdef Slot *slot
        cdef Path path
        cdef uint32_t index
        for index in range(frames.count):
            slot = &frames.slots[index]
            for path in self.paths:
                if path.number == slot.path:
                    self._copy(slot.descriptor, path.descriptor_bytes)

    cdef put_frames(self, FrameSet frames):
        """Queue offered frames that the peer has requested."""
        cdef Buffer chunk = self.chunk
        cdef Mark mark = self._mark()
        try:
            self._put_entries(frames)
            for view in frames.frames:
                self._put(view, COPIED_BYTES)
        except BaseException:
            self._roll_back(&mark, chunk)
            raise

    cdef _put_entries(self, FrameSet frames):
        cdef char *out = self._reserve(PREFIX_BYTES + frames.count * ENTRY_BYTES)
        cdef uint32_t index
        pack_prefix(out, FRAMES, frames.count, 0, frames.sequence)
        out += PREFIX_BYTES
        for index in range(frames.count):
            pack_entry(out, frames.slots[index].nbytes, STREAM, HOST_MEMORY, 0)
            out += ENTRY_BYTES

    cdef put_bytes(self, bytes data):
        """Queue a record that is not a message."""
        self._copy(data, len(data))

    cdef void sent(self, Py_ssize_t nbytes) except *:
        """The first `nbytes` were sent: drop the references to their memory."""
        cdef iovec *vector
        cdef size_t vector_count = 0
        cdef Py_ssize_t left_bytes = nbytes
        while self.first + vector_count < self.last:
            vector = &self.vectors[self.first + vector_count]
            if left_bytes < <Py_ssize_t> vector.iov_len:
                vector.iov_base = <char *> vector.iov_base + left_bytes
                vector.iov_len -= left_bytes
                break
            left_bytes -= vector.iov_len
            vector_count += 1
        self.consumed(vector_count, nbytes)

    cdef void consumed(self, size_t vector_count, Py_ssize_t nbytes) except *:
        """`nbytes` were sent, and the vectors are advanced already: drop the empty ones."""
        self.pending_bytes -= nbytes
        for _ in range(vector_count):
            self.owners[self.first] = None
            self.first += 1
        if self.first == self.last:
            self.first = self.last = 0
            self.tail_is_open = False
            self._release_buffers()

    cdef _release_buffers(self):
        """Release the memory of an empty buffer: most comms are idle."""
        global spare_chunk
        if spare_chunk is None and self.chunk is not None and self.chunk.nbytes == CHUNK_BYTES:
            spare_chunk = self.chunk
            count_use(spare_chunk, -1)
        self.chunk = None
        if self.capacity > KEPT_VECTOR_COUNT:
            free(self.vectors)
            self.vectors = NULL
            self.capacity = 0
            self.owners = new_owners()

    cdef void seal(self) noexcept:
        """Append no more to the last vector: a thread is about to send the current ones."""
        self.tail_is_open = False

    cdef clear(self):
        """Drop everything. No thread may be sending from the buffer."""
        del self.owners[:]
        self.first = self.last = 0
        self.pending_bytes = 0
        self.tail_is_open = False
        self._release_buffers()

    cdef _put(self, view, Py_ssize_t inline_bytes):
        cdef Py_ssize_t nbytes = PyMemoryView_GET_BUFFER(view).len
        cdef char *data = <char *> PyMemoryView_GET_BUFFER(view).buf
        if nbytes <= inline_bytes:
            self._copy(data, nbytes)
        else:
            self._put_vector(data, nbytes, view)

    cdef _copy(self, const char *data, Py_ssize_t nbytes):
        if nbytes > 0:
            memcpy(self._reserve(nbytes), data, nbytes)

    cdef char *_reserve(self, Py_ssize_t nbytes) except NULL:
        """Queue `nbytes` of the chunk; the caller writes them at once."""
        cdef char *out
        if self.chunk is None or self.chunk_used_bytes + nbytes > self.chunk.nbytes:
            self.chunk = new_chunk(nbytes)
            self.chunk_used_bytes = 0
            self.tail_is_open = False
        out = self.chunk.data + self.chunk_used_bytes
        if self.tail_is_open:
            self.vectors[self.last - 1].iov_len += nbytes
            self.pending_bytes += nbytes
        else:
            self._put_vector(out, nbytes, self.chunk)
            self.tail_is_open = True
        self.chunk_used_bytes += nbytes
        return out

    cdef _put_vector(self, char *data, Py_ssize_t nbytes, owner):
        cdef iovec *grown
        cdef size_t capacity
        if self.last == self.capacity and self.first > 0:
            memmove(
                self.vectors, self.vectors + self.first, (self.last - self.first) * sizeof(iovec)
            )
            del self.owners[: self.first]
            self.last -= self.first
            self.first = 0
        if self.last == self.capacity:
            capacity = max(<size_t> 2, 2 * self.capacity)
            grown = <iovec *> realloc(self.vectors, capacity * sizeof(iovec))
            if grown == NULL:
                raise MemoryError()  # untested: malloc does not fail at will
            self.vectors = grown
            self.capacity = capacity
        if self.last < <size_t> len(self.owners):
            self.owners[self.last] = owner
        else:
            self.owners.append(owner)
        self.vectors[self.last].iov_base = data
        self.vectors[self.last].iov_len = nbytes
        self.last += 1
        self.pending_bytes += nbytes
        self.tail_is_open = False


cdef Buffer new_chunk(Py_ssize_t nbytes):
    global spare_chunk
    cdef Buffer chunk = spare_chunk
    if chunk is None or nbytes > CHUNK_BYTES:
        return allocate(max(<Py_ssize_t> CHUNK_BYTES, nbytes))
    count_use(chunk, 1)
    spare_chunk = None
    return chunk


cdef Py_ssize_t _limit(limits, name):
    return min(limits.get(name, PY_SSIZE_T_MAX), PY_SSIZE_T_MAX)


cdef _excess(what, size, limit, key):
    return MessageTooLargeError(
        f"a message of {size} {what}; the peer accepts {limit} "
        f"(fabric.limits.{key} in its configuration)"
    )


cdef Py_ssize_t _nbytes_of(view) noexcept:
    if type(view) is DeviceFrame:
        return (<DeviceFrame> view).nbytes
    return PyMemoryView_GET_BUFFER(view).len


cdef object _bytes_of(data):
    """A view of contiguous memory, of any format."""
    view = data if type(data) is memoryview else PyMemoryView_FromObject(data)
    if not PyBuffer_IsContiguous(PyMemoryView_GET_BUFFER(view), b"A"):
        raise BufferError("a frame is not contiguous")
    return view

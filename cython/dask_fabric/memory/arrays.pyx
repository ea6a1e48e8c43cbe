"""NumPy arrays that own memory of the pool.

Code that looks for the owner of an array's memory (distributed's own does) follows ``base`` and
``obj``, and accepts the end of that chain only if it is bytes, bytearray or an array that owns its
memory. So the owner must be an array. NumPy allocates and frees its memory through our handler (NEP
49), which is set during that one allocation only. NumPy's own handler does what ours leaves to it:
it asks for huge pages for large arrays, and keeps small ones.

Everything here needs the GIL, and `resize` takes it: NumPy reads text without. The functions that
free memory use C structures only: an array may die at any time, also while the interpreter ends or
an exception propagates.
"""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memcpy, strcpy

from dask_fabric.memory.files cimport keeps_pages, make_huge_pages, serves
from dask_fabric.memory.idle cimport file_bytes
from dask_fabric.memory.pool cimport Buffer, allocate, pin_slab, use_small_pages

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    PyObject *PyDataMem_DefaultHandler

cdef enum:
    BUCKET_BITS = 13
    BUCKET_COUNT = 1 << BUCKET_BITS     # short chains even with 100,000 live arrays
    STAGGER_BYTES = 256
    STAGGER_COUNT = 15                  # as many fit in the page behind a slab

cdef const char *CAPSULE = b"mem_handler"
cdef cnp.PyDataMemAllocator numpy = (
    <cnp.PyDataMem_Handler *> PyCapsule_GetPointer(<object> PyDataMem_DefaultHandler, CAPSULE)
).allocator

# Hash table of the buffers that arrays own, by address. Each entry holds a reference.
cdef PyObject *buckets[BUCKET_COUNT]
cdef int place = 0                      # of the array that was made last: see `stagger`
cdef Buffer next_buffer = None          # for the next allocation of its size by NumPy


cdef inline PyObject **bucket_of(const void *data) noexcept:
    # Fibonacci hashing: the low bits of aligned addresses are all equal.
    return &buckets[(<uintptr_t>data * <uint64_t>0x9E3779B97F4A7C15) >> (64 - BUCKET_BITS)]


cdef PyObject **link_to(const void *data) noexcept:
    """The link to the buffer of this memory; NULL if the memory is not the pool's."""
    cdef PyObject **link = bucket_of(data)
    while link[0] != NULL:
        if (<Buffer>link[0]).data == data:
            return link
        link = &(<Buffer>link[0]).following
    return NULL


# ---------------------------------------------------------------- NumPy's memory handler

cdef void *take(void *context, size_t nbytes) noexcept:
    """Hand out `next_buffer`; to others, such as a finalizer that runs meanwhile, NumPy's."""
    global next_buffer
    cdef Buffer buffer = next_buffer
    if buffer is None or <size_t>buffer.nbytes != nbytes:
        return numpy.malloc(numpy.ctx, nbytes)
    next_buffer = None
    return adopt(buffer)


cdef void *adopt(Buffer buffer) noexcept:
    """Keep a buffer whose memory an array is about to own."""
    cdef PyObject **bucket = bucket_of(buffer.data)
    buffer.following = bucket[0]
    bucket[0] = <PyObject *>buffer
    Py_INCREF(buffer)
    return buffer.data


cdef void *take_zeroed(void *context, size_t count, size_t nbytes) noexcept:
    return numpy.calloc(numpy.ctx, count, nbytes)


cdef void *take_shareable(void *context, size_t nbytes) noexcept:
    """Memory that other processes of this host can map, where it is large and there is some.

    Zeroed memory is ordinary: the kernel gives pages of zeros as they are used.
    """
    cdef Buffer buffer = new_shareable(nbytes)
    return numpy.malloc(numpy.ctx, nbytes) if buffer is None else adopt(buffer)


cdef Buffer new_shareable(size_t nbytes):
    """A buffer of the memory file, or None."""
    cdef Buffer buffer
    if not serves(nbytes):
        return None
    try:
        buffer = allocate(nbytes)
    except MemoryError:
        return None
    if not buffer.slab:
        return None
    with nogil:                         # some 0.1 ms for each MB that has none yet
        make_huge_pages(buffer.data, nbytes)
    stagger(buffer)
    return buffer


cdef void stagger(Buffer buffer) noexcept:
    """Have an array begin elsewhere in its first page than the ones before.

    Reads that follow writes to the same place of another page wait for them ("4K aliasing" in
    Intel's optimization manual): a copy takes a tenth longer. The page behind the slab has room.
    """
    global place
    place = place % STAGGER_COUNT + 1
    cdef int lead_bytes = place * STAGGER_BYTES
    if buffer.lead_bytes + lead_bytes + buffer.nbytes <= file_bytes(buffer.capacity_bytes):
        buffer.lead_bytes += lead_bytes
        buffer.data += lead_bytes


cdef void give_back(void *context, void *data, size_t nbytes) noexcept:
    cdef PyObject **link = link_to(data)
    cdef PyObject *buffer
    if link == NULL:
        numpy.free(numpy.ctx, data, nbytes)
        return
    buffer = link[0]
    link[0] = (<Buffer>buffer).following
    Py_DECREF(<Buffer>buffer)


cdef void *resize(void *context, void *data, size_t nbytes) noexcept nogil:
    """Memory of the pool has a fixed size, so its content moves to NumPy's.

    `numpy.fromstring` and `numpy.fromfile` call this without the GIL where they read text.
    """
    cdef PyObject **link
    cdef void *moved
    with gil:
        link = link_to(data)
        if link != NULL:
            moved = numpy.malloc(numpy.ctx, nbytes)
            if moved != NULL:
                memcpy(moved, data, min(nbytes, <size_t>(<Buffer>link[0]).nbytes))
                give_back(context, data, nbytes)
        else:
            moved = numpy.realloc(numpy.ctx, data, nbytes)
    return moved


cdef cnp.PyDataMem_Handler handler
strcpy(handler.name, b"dask_fabric")
handler.version = 1
handler.allocator.ctx = NULL
handler.allocator.malloc = take
handler.allocator.calloc = take_zeroed
handler.allocator.realloc = resize
handler.allocator.free = give_back
cdef object handler_capsule = PyCapsule_New(&handler, CAPSULE, NULL)

# In force for whatever computes: see `share_results`.
cdef cnp.PyDataMem_Handler shareable_handler = handler
strcpy(shareable_handler.name, b"dask_fabric_shareable")
shareable_handler.allocator.malloc = take_shareable
cdef object shareable_capsule = PyCapsule_New(&shareable_handler, CAPSULE, NULL)


def share_results():
    """Have large arrays lie in the memory file that NumPy makes from now on in this context.

    The handler of NumPy's memory is a context variable: tasks and threads that are started with a
    copy of this context (`contextvars.copy_context`) have it too.
    """
    cnp.PyDataMem_SetHandler(shareable_capsule)


# ---------------------------------------------------------------- arrays

cpdef object new_array(Py_ssize_t nbytes, uint64_t like=0):
    """Make an array that owns memory of the pool, and returns it when it dies.

    Parameters
    ----------
    nbytes : int
        Length in bytes, at least 1.
    like : int
        As for `pool.allocate`.

    Returns
    -------
    numpy.ndarray
        Of shape ``(nbytes,)`` and dtype ``uint8``, its content undefined.

    Raises
    ------
    ValueError
        The length is negative.
    MemoryError
        The system does not give that much; the message names the size.
    """
    return array_of(allocate(nbytes, like))


cdef object array_of(Buffer buffer):
    """An array of bytes that owns the memory of a buffer."""
    global next_buffer
    cdef cnp.npy_intp length = buffer.nbytes
    previous = cnp.PyDataMem_SetHandler(handler_capsule)
    try:
        next_buffer = buffer
        return cnp.PyArray_SimpleNew(1, &length, cnp.NPY_UINT8)
    finally:
        if next_buffer is buffer:
            next_buffer = None
        cnp.PyDataMem_SetHandler(previous)


cdef void prefer_small_pages(char *data) noexcept:
    """Forgo huge pages for an array from `new_array`, by its address, before it is written to."""
    cdef PyObject **link = link_to(data)
    if link != NULL:
        use_small_pages(<Buffer>link[0])


cdef Py_ssize_t slab_of(const char *data, char **begin) noexcept:
    """Find the slab of an array that begins at `data`, to register it with a device.

    Returns
    -------
    int
        Its size; 0 if no array of the pool begins there, or if its pages may be replaced without
        a call of `memory.system.on_leaving`.
    """
    cdef PyObject **link = link_to(data)
    cdef Buffer buffer
    if link == NULL:
        return 0
    buffer = <Buffer>link[0]
    if buffer.mapping != NULL or buffer.size_class == -1:   # a peer's; from malloc
        return 0
    if buffer.slab and not keeps_pages(buffer.slab, buffer.epoch):
        return 0
    begin[0] = buffer.data - buffer.lead_bytes
    return buffer.capacity_bytes


cdef char *data_of(object array) noexcept:
    return <char *>cnp.PyArray_DATA(<cnp.ndarray>array)


cpdef bint pin(object array, object pin_memory) except -1:
    """Pin the memory of an array; it stays pinned when the pool recycles it.

    Parameters
    ----------
    array : object
        From `new_array`; any other object is ignored.
    pin_memory : callable
        ``(address, nbytes)``; its exceptions propagate, and nothing is pinned then.

    Returns
    -------
    bool
        Whether it is pinned now.
    """
    cdef PyObject **link
    if not isinstance(array, cnp.ndarray):
        return False
    link = link_to(data_of(array))
    return link != NULL and pin_slab(<Buffer>link[0], pin_memory)

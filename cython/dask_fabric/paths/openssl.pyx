"""TLS without the GIL, by the OpenSSL that Python's ssl module uses.

Theory of operation
-------------------
An `ssl.SSLSocket` takes the GIL for each record of 16 KiB, so beside a busy thread it moves 200
records a second. Here OpenSSL's ``SSL_read`` and ``SSL_write`` are called directly, on the session
that Python has made and authenticated. Native threads can then move the bytes of large messages.

The functions come from the library that Python's ``_ssl`` is linked to. The session is a field of
``_ssl._SSLSocket``, behind the socket and before the context, in CPython 3.10 to 3.14. All of that
is checked; where it differs, or ``_ssl`` is part of the interpreter, `new_session` gives NULL, and
Python's own methods are used.

OpenSSL lets one thread at a time use a session, while a connection may send and receive at once.
So each call holds a mutex for one record. Two rules keep the event loop from waiting for long:

- Memory that is slow to read (swap, a file on a network) is never read under the mutex:
  `session_write` copies a record's bytes first.
- No thread waits for the mutex while it holds the GIL, or for the GIL while it holds the mutex: a
  task may hold the GIL for seconds, and native threads must go on. Where the mutex is taken, the
  loop gives up the GIL for the whole call (`loop_read`). Only callbacks of Python's need both.
"""

import _ssl
import os
import ssl

from libc cimport errno as c_errno
from libc.errno cimport EAGAIN, EPIPE, EPROTO
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from dask_fabric.atomics cimport add_relaxed, relaxed
from dask_fabric.linux cimport (
    RTLD_LAZY, RTLD_LOCAL, RTLD_NOLOAD, dlopen, dlsym, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_trylock, pthread_mutex_unlock, sched_yield,
)

# openssl/ssl.h and openssl/sslerr.h: the same in OpenSSL 1.1.1 and 3.
cdef enum:
    SSL_ERROR_SSL = 1
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3
    SSL_ERROR_SYSCALL = 5
    SSL_ERROR_ZERO_RETURN = 6
    SSL_R_UNEXPECTED_EOF_WHILE_READING = 294
    REASON_MASK = 0xFFF         # of an error's code, its lowest bits in both
    SSL_CLIENT_HELLO_ERROR = 0
    SSL_CLIENT_HELLO_SUCCESS = 1
    TLSEXT_TYPE_SERVER_NAME = 0
    NAME_OFFSET = 5             # in that extension: after two lengths, and the kind of name
    ALERT_UNRECOGNIZED_NAME = 112

ctypedef int (*HelloCallback)(void *ssl, int *alert, void *argument) noexcept nogil

# In the order of `_NAMES`.
cdef struct OpenSSL:
    int (*read)(void *ssl, void *room, int nbytes) noexcept nogil
    int (*write)(void *ssl, const void *data, int nbytes) noexcept nogil
    int (*pending)(const void *ssl) noexcept nogil
    int (*get_error)(const void *ssl, int result) noexcept nogil
    int (*get_fd)(const void *ssl) noexcept nogil
    void (*clear_error)() noexcept nogil
    unsigned long (*peek_error)() noexcept nogil
    unsigned long (*version_num)() noexcept nogil
    void *(*get_context)(const void *ssl) noexcept nogil
    void (*set_hello_callback)(void *context, HelloCallback callback, void *argument) noexcept nogil
    int (*get_extension)(
        void *ssl, unsigned int kind, const unsigned char **content, size_t *nbytes
    ) noexcept nogil

_NAMES = (
    b"SSL_read", b"SSL_write", b"SSL_pending", b"SSL_get_error", b"SSL_get_fd", b"ERR_clear_error",
    b"ERR_peek_error", b"OpenSSL_version_num", b"SSL_get_SSL_CTX", b"SSL_CTX_set_client_hello_cb",
    b"SSL_client_hello_get0_ext",
)

# `_ssl._SSLSocket`, behind what every object begins with.
cdef struct SSLSocketFields:
    PyObject *socket
    void *ssl
    PyObject *context

cdef OpenSSL openssl

# What is done under the mutex of a session.
ctypedef ssize_t (*Function)(TLSSession *, void *, size_t, TLSWish *) noexcept nogil


cdef bint _find_functions() except -1:
    """Fill the table of functions; False if this process's OpenSSL cannot be called directly."""
    cdef void **entries = <void **> &openssl
    cdef void *library
    cdef Py_ssize_t index
    cdef bytes path
    assert len(_NAMES) * sizeof(void *) == sizeof(OpenSSL)
    file = getattr(_ssl, "__file__", None)
    if file is None:            # part of the interpreter
        return False
    path = os.fsencode(file)
    library = dlopen(path, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD)
    if library == NULL:
        return False
    for index, name in enumerate(_NAMES):
        # Searches what `_ssl` is linked to, whichever other OpenSSL this process has.
        entries[index] = dlsym(library, <bytes> name)
        if entries[index] == NULL:
            return False
    return openssl.version_num() == ssl.OPENSSL_VERSION_NUMBER


is_available = _find_functions()


cdef TLSSession *new_session(sslobject, int fd) except? NULL:
    """Take the session of a ``_ssl._SSLSocket``, which must outlive it; NULL if that cannot be.

    Free it by `free_session`.
    """
    cdef SSLSocketFields *fields
    cdef TLSSession *session
    if not is_available or type(sslobject) is not _ssl._SSLSocket:
        return NULL
    if type(sslobject).__basicsize__ < sizeof(PyObject) + sizeof(SSLSocketFields):
        return NULL
    fields = <SSLSocketFields *> (<char *> <PyObject *> sslobject + sizeof(PyObject))
    context = sslobject.context
    if fields.context != <PyObject *> context or fields.ssl == NULL:
        return NULL             # another layout
    if openssl.get_fd(fields.ssl) != fd:
        return NULL
    session = <TLSSession *> calloc(1, sizeof(TLSSession))
    if session == NULL:
        raise MemoryError()
    session.ssl = fields.ssl
    pthread_mutex_init(&session.mutex, NULL)
    return session


cdef void free_session(TLSSession *session) noexcept nogil:
    pthread_mutex_destroy(&session.mutex)
    free(session)


def refuse_other_names(context):
    """Have a server's context refuse clients that ask for a name (SNI) which is not ASCII.

    Where a context has an ``sni_callback``, Python itself prints a traceback for each of them.
    Nothing is done where OpenSSL cannot be called.

    Parameters
    ----------
    context : ssl.SSLContext
    """
    sslobject = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)._sslobj
    cdef TLSSession *session = new_session(sslobject, -1)
    if session == NULL:
        return
    openssl.set_hello_callback(openssl.get_context(session.ssl), _look_at_name, NULL)
    free_session(session)


cdef int _look_at_name(void *tls, int *alert, void *argument) noexcept nogil:
    cdef const unsigned char *content
    cdef size_t nbytes, index
    if openssl.get_extension(tls, TLSEXT_TYPE_SERVER_NAME, &content, &nbytes):
        for index in range(NAME_OFFSET, nbytes):
            if content[index] >= 0x80:
                alert[0] = ALERT_UNRECOGNIZED_NAME
                return SSL_CLIENT_HELLO_ERROR
    return SSL_CLIENT_HELLO_SUCCESS


# ---------------------------------------------------------------- native threads

cdef ssize_t session_read(TLSSession *session, void *room, size_t nbytes) noexcept nogil:
    """Read as ``recv`` does, at most one record: -1 and ``errno`` for an error."""
    cdef TLSWish wish
    return _call_behind_python(_read, session, room, nbytes, &wish)


cdef ssize_t session_write(TLSSession *session, const void *data, size_t nbytes) noexcept nogil:
    """Write as ``send`` does, at most one record: -1 and ``errno`` for an error."""
    cdef char record[RECORD_BYTES]
    cdef TLSWish wish
    cdef ssize_t moved
    nbytes = min(nbytes, <size_t> RECORD_BYTES)
    memcpy(record, data, nbytes)
    moved = _call_behind_python(_write, session, record, nbytes, &wish)
    if moved == 0:              # the peer has ended the connection
        c_errno.errno = EPIPE
        return -1
    return moved


cdef bint session_has_pending(TLSSession *session) noexcept nogil:
    """Whether decrypted bytes wait in OpenSSL, which do not make the socket readable."""
    return _call_behind_python(_pending, session, NULL, 0, NULL) > 0


cdef ssize_t _call_behind_python(
    Function function, TLSSession *session, void *memory, size_t nbytes, TLSWish *wish
) noexcept nogil:
    cdef ssize_t result
    while relaxed(&session.waiting_count) > 0:
        sched_yield()
    pthread_mutex_lock(&session.mutex)
    result = function(session, memory, nbytes, wish)
    pthread_mutex_unlock(&session.mutex)
    return result


# ---------------------------------------------------------------- the loop, which holds the GIL

cdef ssize_t loop_read(TLSSession *session, void *room, size_t nbytes, TLSWish *wish) noexcept:
    """Read as `session_read` does, and say what a read that gives -1 has to wait for."""
    return _call_as_python(_read, session, room, nbytes, wish)


cdef ssize_t loop_write(
    TLSSession *session, const void *data, size_t nbytes, TLSWish *wish
) noexcept:
    """Write at most one record; 0 if the peer has ended the connection, -1 as `loop_read`."""
    return _call_as_python(_write, session, <void *> data, nbytes, wish)


cdef bint loop_has_pending(TLSSession *session) noexcept:
    """As `session_has_pending`."""
    return _call_as_python(_pending, session, NULL, 0, NULL) > 0


cdef ssize_t _call_as_python(
    Function function, TLSSession *session, void *memory, size_t nbytes, TLSWish *wish
) noexcept:
    cdef ssize_t result
    if pthread_mutex_trylock(&session.mutex) == 0:
        result = function(session, memory, nbytes, wish)
        pthread_mutex_unlock(&session.mutex)
        return result
    with nogil:
        add_relaxed(&session.waiting_count, 1)
        pthread_mutex_lock(&session.mutex)
        add_relaxed(&session.waiting_count, -1)
        result = function(session, memory, nbytes, wish)
        pthread_mutex_unlock(&session.mutex)
    return result


# ---------------------------------------------------------------- under the mutex

cdef ssize_t _read(TLSSession *session, void *room, size_t nbytes, TLSWish *wish) noexcept nogil:
    _forget_errors()
    cdef int result = openssl.read(session.ssl, room, <int> min(nbytes, <size_t> 1 << 30))
    return result if result > 0 else _failed(session, result, wish)


cdef ssize_t _write(TLSSession *session, void *data, size_t nbytes, TLSWish *wish) noexcept nogil:
    """Write one record.

    One that did not fit must be tried again with the same bytes, or with more behind them. No call
    passes more than a record, so a thread and the loop may do that for each other.
    """
    _forget_errors()
    cdef int result = openssl.write(session.ssl, data, <int> min(nbytes, <size_t> RECORD_BYTES))
    return result if result > 0 else _failed(session, result, wish)


cdef ssize_t _pending(
    TLSSession *session, void *memory, size_t nbytes, TLSWish *wish
) noexcept nogil:
    return openssl.pending(session.ssl)


cdef void _forget_errors() noexcept nogil:
    """Forget earlier errors of this thread: `get_error` would report them."""
    openssl.clear_error()
    c_errno.errno = 0


cdef ssize_t _failed(TLSSession *session, int result, TLSWish *wish) noexcept nogil:
    """Give what ``recv`` would: 0 at the end of the stream, else -1, and set ``errno``."""
    cdef int error = c_errno.errno
    cdef int kind = openssl.get_error(session.ssl, result)
    wish[0] = TLS_NOTHING
    # Errors that stay would be reported for other connections of this thread, which Python moves.
    cdef unsigned long reason = openssl.peek_error() & REASON_MASK
    openssl.clear_error()
    if kind == SSL_ERROR_WANT_READ or kind == SSL_ERROR_WANT_WRITE:
        wish[0] = TLS_WANTS_READ if kind == SSL_ERROR_WANT_READ else TLS_WANTS_WRITE
        error = EAGAIN
    elif kind == SSL_ERROR_ZERO_RETURN:
        return 0
    elif kind == SSL_ERROR_SSL:
        # OpenSSL 3 says so of a stream that ends without an alert. Whether it ended too early, a
        # CLOSE record says.
        if reason == SSL_R_UNEXPECTED_EOF_WHILE_READING:
            return 0
        error = EPROTO
    elif error == 0:            # the same of OpenSSL 1.1.1
        return 0
    c_errno.errno = error
    return -1

"""A mailbox: native threads post completions to it, and one event loop collects them."""

import os

from libc.errno cimport errno
from libc.stdlib cimport calloc, free

from dask_fabric.clock cimport now_ns
from dask_fabric.linux cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, eventfd_write, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)


cdef Mailbox *open_mailbox() except NULL:
    cdef Mailbox *mailbox = <Mailbox *> calloc(1, sizeof(Mailbox))
    if mailbox == NULL:
        raise MemoryError()
    mailbox.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if mailbox.event_fd < 0:
        free(mailbox)
        raise OSError(errno, f"eventfd: {os.strerror(errno)}; is the limit of open files reached?")
    pthread_mutex_init(&mailbox.mutex, NULL)
    return mailbox


cdef void close_mailbox(Mailbox *mailbox) noexcept nogil:
    """Free a mailbox. Every job that refers to it must have ended or been cancelled."""
    cdef Completion unread
    while next_completion(mailbox, &unread):
        pass
    close(mailbox.event_fd)
    pthread_mutex_destroy(&mailbox.mutex)
    free(mailbox)


cdef void post(Mailbox *mailbox, CompletionNode *node) noexcept nogil:
    """Append a completion, which the mailbox owns from now on, and wake the loop."""
    node.next = NULL
    node.completion.posted_ns = now_ns()
    pthread_mutex_lock(&mailbox.mutex)
    if mailbox.last == NULL:
        mailbox.first = node
    else:
        mailbox.last.next = node
    mailbox.last = node
    # Under the mutex: once the loop has collected the last completion, it may free the mailbox.
    eventfd_write(mailbox.event_fd, 1)
    pthread_mutex_unlock(&mailbox.mutex)


cdef bint next_completion(Mailbox *mailbox, Completion *completion) noexcept nogil:
    """Remove the oldest completion; False if there is none."""
    cdef CompletionNode *node
    pthread_mutex_lock(&mailbox.mutex)
    node = mailbox.first
    if node != NULL:
        mailbox.first = node.next
        if mailbox.first == NULL:
            mailbox.last = NULL
        completion[0] = node.completion
    pthread_mutex_unlock(&mailbox.mutex)
    free(node)
    return node != NULL


cdef void forget_all(Mailbox *mailbox) noexcept nogil:
    """In a forked child: drop the parent's completions, and renew the mutex, maybe left locked."""
    mailbox.first = mailbox.last = NULL
    pthread_mutex_init(&mailbox.mutex, NULL)

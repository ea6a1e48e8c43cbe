"""The Linux calls that this package uses: declarations only, for every layer."""

from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport timespec

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t process_vm_readv(
        int pid, const iovec *here, unsigned long here_count, const iovec *there,
        unsigned long there_count, unsigned long flags)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int close(int fd)
    int pipe2(int ends[2], int flags)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int operation, unsigned long first, unsigned long second, unsigned long third,
              unsigned long fourth)
    int PR_SET_PTRACER
    unsigned long PR_SET_PTRACER_ANY

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long offset, long nbytes)
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    struct flock:
        short l_type
        short l_whence
        long l_start
        long l_len
        int l_pid
    int fcntl(int fd, int command, ...)
    int F_OFD_SETLK
    short F_RDLCK
    short F_UNLCK
    short F_WRLCK

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_mremap

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long fd_count, int timeout_ms)
    short POLLIN
    short POLLRDHUP
    short POLLHUP
    short POLLERR

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct sockaddr:
        unsigned short sa_family
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    ssize_t send(int fd, const void *data, size_t nbytes, int flags)
    ssize_t recv(int fd, void *data, size_t nbytes, int flags)
    int setsockopt(int fd, int level, int option, const void *value, unsigned int nbytes)
    int connect(int fd, const sockaddr *address, unsigned int nbytes)
    int AF_UNSPEC
    int SOL_SOCKET
    int SO_RCVLOWAT
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_CORK

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int events_max, int timeout_ms)
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    uint32_t EPOLLONESHOT

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    int eventfd_write(int fd, uint64_t value)
    int eventfd_read(int fd, uint64_t *value)
    int EFD_CLOEXEC
    int EFD_NONBLOCK

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *signals)
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *old)
    int SIG_SETMASK

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t *thread, void *attributes, void *(*main)(void *) noexcept nogil,
                       void *argument)
    int pthread_detach(pthread_t thread)
    int pthread_join(pthread_t thread, void **result)
    pthread_t pthread_self()
    int pthread_setname_np(pthread_t thread, const char *name)
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, void *attributes)
    int pthread_cond_timedwait(
        pthread_cond_t *condition, pthread_mutex_t *mutex, const timespec *until)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)

cdef extern from "<dlfcn.h>" nogil:
    ctypedef struct Dl_info:
        const char *dli_fname
    void *dlopen(const char *path, int flags)
    void *dlsym(void *library, const char *name)
    char *dlerror()
    int dladdr(const void *address, Dl_info *info)
    int RTLD_LAZY
    int RTLD_LOCAL
    int RTLD_NOLOAD

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<errno.h>" nogil:
    int ECANCELED               # missing in libc.errno

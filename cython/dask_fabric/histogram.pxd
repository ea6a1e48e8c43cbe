"""Counts by powers of two, in an array of fixed size."""

from libc.stdint cimport uint64_t

cdef extern from *:
    int __builtin_clzll(unsigned long long value) noexcept nogil

cdef enum:
    BUCKET_COUNT = 40           # 1 TB, or 18 minutes in nanoseconds

cdef struct Histogram:
    uint64_t counts[BUCKET_COUNT]   # [i]: values above 2**(i - 1), up to 2**i; last: the rest
    uint64_t total                  # the sum of the values


cdef inline void note(Histogram *histogram, uint64_t value) noexcept nogil:
    cdef int bucket = 64 - __builtin_clzll(value - 1) if value > 1 else 0
    histogram.counts[min(bucket, BUCKET_COUNT - 1)] += 1
    histogram.total += value

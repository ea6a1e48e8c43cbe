"""What the pool asks of the operating system; only `obtain` needs the GIL, and nothing a lock.

Memory of less than 2 MiB comes from the C library; more is mapped, of huge pages: fresh ones cost
a third of the time. The first byte that is written into a huge page makes all of it resident.
Therefore neighbours share their huge pages: memory is cut from a run, one piece after the other,
and each piece is unmapped by itself.
"""

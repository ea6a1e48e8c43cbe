"""Page maps: what the pages of a process are, as /proc/PID/pagemap shows it.

Notes
-----
See the kernel's Documentation/admin-guide/mm/pagemap.rst.
"""

"""A grammar of ``dtype.str``.

NumPy's own parser accepts much more than NumPy writes, and some of that crashes the process: it
divides by the 0 of ``<m8[s/0]``. So a peer's text is matched here first, byte by byte::

    text   = order kind size [unit]
    order  = "<" | ">", or "|" if items have one byte or are bytes themselves (S)
    kind   = "b" | "i" | "u" | "f" | "c" | "m" | "M" | "S" | "U"
    size   = a size that the kind has; for S and U from 1, up to as many bytes as fit a C int
    unit   = "[" [2 ... 2**31 - 1] name "]", for m and M
"""

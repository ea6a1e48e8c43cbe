"""A grammar of ``dtype.str``.

NumPy's own parser takes much more than it writes, and some of that ends the process: it divides
by the 0 of ``<m8[s/0]``. So a peer's text is matched here first, byte by byte::

    text   = order kind size [unit]
    order  = "<" | ">", or "|" where items have one byte or are bytes themselves (S)
    kind   = "b" | "i" | "u" | "f" | "c" | "m" | "M" | "S" | "U"
    size   = one of those that the kind has; for S and U 1 to what a C int counts in bytes
    unit   = "[" [2 ... 2**31 - 1] name "]", for m and M
"""

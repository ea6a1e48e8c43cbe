<<<<<<< HEAD
from typing import TypeAlias, TypedDict

Kind: TypeAlias = int

class Entry(TypedDict):
    kind: Kind
    body: int
    body_nbytes: int
    frame_start: int
    frame_count: int
    is_decoded: bool
    flags: int
    ndim: int
    dtype: int
    dtype_nbytes: int
    itemsize: int

class Reader(TypedDict):
    data: int
    nbytes: int
    at: int
=======

>>>>>>> types

<<<<<<< HEAD
from typing import TypeAlias, TypedDict

Kind: TypeAlias = int

class Item(TypedDict):
    start: int
    body: int
    is_text: bool
=======

>>>>>>> types

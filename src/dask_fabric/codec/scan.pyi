from typing import TypedDict

from typing_extensions import TypeAlias

Kind: TypeAlias = int

class Item(TypedDict):
    start: int
    body: int
    is_text: bool

"""``CUDA_VISIBLE_DEVICES``: the GPUs that it names, and the same with another one first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dask_fabric.errors import UnavailableError

VARIABLE = "CUDA_VISIBLE_DEVICES"
_PREFIXES = ("GPU-", "MIG-")  # of UUIDs, which may be shortened
_ENDS = ("", "-1", "NoDevFiles")  # the last is what Slurm gives a job without GPUs


def names_of(value: str | int | Iterable[str | int]) -> tuple[str, ...]:
    """Give the names of the devices that a value of the variable lets a process see.

    Parameters
    ----------
    value : str, int or iterable
        As in the environment, or a list: indices, and UUIDs of GPUs or of MIG instances. As CUDA
        does it, -1 ends the list; so does ``NoDevFiles``.

    Raises
    ------
    UnavailableError
        A name is none, or comes twice.
    """
    if isinstance(value, (str, int)):
        value = str(value).split(",")
    names: list[str] = []
    for name in (str(part).strip() for part in value):
        if name in _ENDS:
            break
        if not name.isdecimal() and not name.startswith(_PREFIXES):
            raise UnavailableError(
                f"{VARIABLE} names {name!r}; expected indices such as 0,1, or UUIDs that begin "
                "with GPU- or MIG-, as `nvidia-smi -L` lists them"
            )
        if name in names:
            raise UnavailableError(f"{VARIABLE} names {name} twice; name every GPU once")
        names.append(name)
    return tuple(names)


def turned(names: Sequence[str], first: int) -> str:
    """Give a value of the variable in which the device at index *first* comes first.

    The others follow in turn, so that a process can reach all of them (CUDA IPC needs that), and
    processes that take their second device take different ones.
    """
    return ",".join((*names[first:], *names[:first]))

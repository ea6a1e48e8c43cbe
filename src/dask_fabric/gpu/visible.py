"""``CUDA_VISIBLE_DEVICES``: parsing it, and rotating it so that another GPU is first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dask_fabric.errors import UnavailableError

VARIABLE = "CUDA_VISIBLE_DEVICES"
_PREFIXES = ("GPU-", "MIG-")  # of UUIDs, which may be shortened
_ENDS = ("", "-1", "NoDevFiles")  # the last is Slurm's value for a job without GPUs


def names_of(value: str | int | Iterable[str | int]) -> tuple[str, ...]:
    """Give the names of the devices in a value of the variable.

    Parameters
    ----------
    value : str, int or iterable
        As in the environment, or a list: indices, and UUIDs of GPUs or of MIG instances. As in
        CUDA, -1 ends the list; so does ``NoDevFiles``.

    Raises
    ------
    UnavailableError
        A name is invalid or occurs twice.
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
    """Give a value of the variable, rotated so that the device at index *first* comes first.

    The others follow, so that a process can access all of them (CUDA IPC needs that), and the
    second device of each process is a different one.
    """
    return ",".join((*names[first:], *names[:first]))

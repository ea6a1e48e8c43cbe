"""What the time of transfers is spent on, as `dask_fabric.wire.metrics.Metrics` counts it.

The figure of each kind is called ``NAME_seconds``. ``docs/statistics.md`` says what they mean.
"""

from __future__ import annotations

from typing import NamedTuple


class Wait(NamedTuple):
    """One kind.

    Attributes
    ----------
    name : str
        In statistics, reports and metrics.
    column : str
        A short label, where the kinds are columns of a wide table.
    label : str
        A label that needs no explanation.
    """

    name: str
    column: str
    label: str

    @property
    def field(self) -> str:
        """The name of the figure."""
        return f"{self.name}_seconds"


MOVING = (
    Wait("loop", "loop", "waited for the loop"),
    Wait("allocate", "allocate", "allocating"),
    Wait("wire", "wire", "on the wire"),
    Wait("peer", "peer", "waited for the peer"),
)
CODING = (
    Wait("serialize", "serialize", "serializing"),
    Wait("deserialize", "deserialize", "deserializing"),
)
ALL = (*MOVING, *CODING)
# Those in the reports of workers and in the history, where both kinds of `CODING` are one.
REPORTED = (*MOVING, Wait("serialize", "code", "(de)serializing"))

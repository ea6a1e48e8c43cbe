"""The targets: each is a function of one input. Importing this package registers all of them."""

from . import codec, devices, hello, negotiation, shm, stream  # noqa: F401

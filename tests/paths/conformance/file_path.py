"""A path as a third party would write one: each frame is a file in /dev/shm."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets

from dask_fabric.keys import Section, switch
from dask_fabric.paths.provider import Candidate, Description, Provider

FOLDER = "/dev/shm"
NUMBER = 16  # on the wire: from 16 to 31
TOKEN_BYTES = 16


class FileProvider(Provider):
    """Answers for the process: can it use the path, with whom, and what must a peer know?"""

    name = "file"
    title = "files in /dev/shm"
    rank = 5  # before shm, which has 10, and cma, which has 20
    within_host = True
    section = Section(
        "Frames as files in /dev/shm.",
        {"enabled": switch("enabled", True, "", "Whether this process takes part.")},
    )
    described = Description(folder=FOLDER)

    def load(self):
        import dask_fabric.paths.python_path  # noqa: F401

    def unwanted(self, settings, insists):
        return "" if settings.enabled else "fabric.file.enabled is false"

    def describe(self, settings, insists):
        return self.described

    def check(self, description):
        return isinstance(description.get("folder"), str)

    def objection(self, pair):
        same = pair.client["folder"] == pair.server["folder"]
        return "" if same else "the two have their files in different folders"

    def candidate(self, description, settings, sock):
        return FileCandidate(description)


class FileCandidate(Candidate):
    """The path for one connection."""

    def open(self, peer, memory):
        return file_path(asyncio.get_running_loop())


PROVIDER = FileProvider()


def place_of(token: bytes) -> str:
    return os.path.join(FOLDER, f"dask-fabric-toy-{token.hex()}")


def file_path(loop):
    # Imported late: a provider is found together with the configuration, before all else.
    from dask_fabric.paths.python_path import PythonPath

    class FilePath(PythonPath):
        """Moves the frames of one comm."""

        def describe_frame(self, memory):
            token = secrets.token_bytes(TOKEN_BYTES)
            with open(place_of(token), "xb") as file:
                file.write(memory)
            return token

        def fetch_frame(self, descriptor, memory):
            with open(place_of(descriptor), "rb") as file:
                if file.readinto(memory) != memory.nbytes:
                    raise OSError(errno.EIO, "the file of a frame is too short")

        def release_frame(self, descriptor):
            os.unlink(place_of(descriptor))

    return FilePath(loop, "file", NUMBER, TOKEN_BYTES)

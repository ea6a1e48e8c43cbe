"""Take a connection out of its channel, for a path that needs more than one to the same peer."""

from dask_fabric.engine.channel import Channel
from dask_fabric.paths.joined import JoinedSocket

class DetachedSocket(JoinedSocket):
    """The transport of a channel that has given it up."""
    @property
    def sock(self):
        """The socket, to ask the kernel about it."""
    def end_sending(self): ...
    def close(self): ...
    def forked(self): ...

def detach(channel: Channel) -> JoinedSocket:
    """Take the connection out of a channel that has just opened. The channel is closed by that.

    Parameters
    ----------
    channel : Channel
        After `open`, and before any message.

    Returns
    -------
    dask_fabric.paths.joined.JoinedSocket
        The hello of this side has been sent.

    Raises
    ------
    ChannelClosedError
        The channel is closed already, or its hello does not fit into the socket.
    UnavailableError
        Native threads cannot use this connection, because they cannot call Python's OpenSSL.
    """

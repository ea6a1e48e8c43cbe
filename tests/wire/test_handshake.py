"""The handshake: what valid peers agree on, and the replies to all kinds of invalid ones."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_fabric.errors import (
    ForeignProtocolError,
    LimitError,
    ProtocolError,
    RefusedError,
    VersionMismatchError,
)
from dask_fabric.wire import hello as hello_module
from dask_fabric.wire.foreign import MAGIC, PREAMBLE_BYTES
from dask_fabric.wire.handshake import (
    CLIENT_TRANSITIONS,
    SERVER_TRANSITIONS,
    Handshake,
    State,
)
from dask_fabric.wire.hello import HELLO_BYTES_LIMIT, Hello

CLIENT_HELLO = Hello(scheme="fabric", pid=1, limits={"frames": 10})
SERVER_HELLO = Hello(scheme="fabric+tcp", pid=2, features=("shrink",))


def handshake(server_side: bool, **kwargs) -> Handshake:
    """Return a handshake that waits for the peer's preamble."""
    result = Handshake(SERVER_HELLO if server_side else CLIENT_HELLO, server_side, **kwargs)
    if not server_side:
        result.data_to_send()
    return result


def preamble(hello_bytes: int, major=1, minor=0, flags=0) -> bytes:
    return struct.pack("<8sBBHI", MAGIC, major, minor, flags, hello_bytes)


def greeting(content, **kwargs) -> bytes:
    body = content if isinstance(content, bytes) else msgpack.packb(content)
    return preamble(len(body), **kwargs) + body


def good(**changes) -> dict:
    content = {"scheme": "fabric", "paths": ["stream"], "memory": ["host"], **changes}
    return {key: value for key, value in content.items() if value is not ...}


def failure(data: bytes, server_side: bool, kind=ProtocolError, **kwargs) -> ProtocolError:
    side = handshake(server_side, **kwargs)
    with pytest.raises(kind) as caught:
        side.receive(data)
    assert type(caught.value) is kind
    assert side.state is State.FAILED and not side.done and side.data_to_send() == b""
    return caught.value


# ---- two good sides


@given(st.integers(1, 400), st.integers(1, 400))
def test_two_sides_agree_however_the_bytes_are_cut(client_step, server_step):
    client, server = Handshake(CLIENT_HELLO, False), Handshake(SERVER_HELLO, True)
    assert server.data_to_send() == b""
    feed(server, client.data_to_send(), client_step)
    feed(client, server.data_to_send(), server_step)
    assert server.done and client.done
    assert server.peer == CLIENT_HELLO and client.peer == SERVER_HELLO
    assert server.version == client.version == (1, 0)
    assert client.state is server.state is State.DONE


def feed(side: Handshake, data: bytes, step: int) -> None:
    for start in range(0, len(data), step):
        part = data[start : start + step]
        assert side.receive(part) == len(part)


def test_server_answers_only_after_the_client_s_hello_and_once():
    client, server = Handshake(CLIENT_HELLO, False), Handshake(SERVER_HELLO, True)
    data = client.data_to_send()
    assert data.startswith(MAGIC) and client.data_to_send() == b""
    server.receive(data[:-1])
    assert server.data_to_send() == b"" and not server.done
    server.receive(data[-1:])
    assert server.data_to_send() != b"" and server.data_to_send() == b""


@pytest.mark.parametrize("container", [bytes, bytearray, memoryview])
def test_bytes_after_the_hello_are_left_alone(container):
    client, server = Handshake(CLIENT_HELLO, False), Handshake(SERVER_HELLO, True)
    data = client.data_to_send()
    assert server.receive(container(data + b"records")) == len(data)
    assert server.receive(b"records") == 0
    server.data_to_send()
    assert server.receive(b"records") == 0


def test_preamble_is_as_specified():
    data = Hello(scheme="fabric").encode()
    assert data[:8] == b"\x89fabric\x8a"
    assert data[8:12] == bytes([1, 0, 0, 0])
    assert int.from_bytes(data[12:16], "little") == len(data) - 16
    assert msgpack.unpackb(data[16:])["paths"] == ["stream"]


def test_the_address_is_said_only_where_there_is_one():
    assert b"address" not in Hello().encode()
    side = handshake(True)
    side.receive(Hello(address="127.0.0.1:1").encode())
    assert side.peer.address == "127.0.0.1:1"


def test_what_later_versions_add_is_ignored():
    side = handshake(True)
    content = good(host={"boot": "x", "namespaces": [1, 2]}, blob=b"\xff", floats=[1.5, None])
    side.receive(greeting(content, minor=7, flags=0xFFFF))
    assert side.version == (1, 0)
    assert side.peer.scheme == "fabric" and side.peer.software == Hello().software


def test_own_hello_is_bounded():
    with pytest.raises(ValueError, match="at most 65536"):
        Handshake(Hello(scheme="x" * HELLO_BYTES_LIMIT), False).data_to_send()


# ---- states


@pytest.mark.parametrize("table", [CLIENT_TRANSITIONS, SERVER_TRANSITIONS])
def test_every_state_of_a_role_is_reached_and_can_fail_until_it_is_done(table):
    start = State.SILENT if table is CLIENT_TRANSITIONS else State.PREAMBLE
    reached, todo = {start}, [start]
    while todo:
        state = todo.pop()
        following = {after for (before, _), after in table.items() if before is state}
        todo += following - reached
        reached |= following
        assert State.FAILED in following or state in (State.DONE, State.FAILED)
    assert reached == {before for before, _ in table} | {State.FAILED}


def test_illegal_steps_raise():
    with pytest.raises(RuntimeError, match="BYTES is not allowed in SILENT"):
        Handshake(CLIENT_HELLO, False).receive(b"x")
    failed = handshake(True)
    with pytest.raises(ForeignProtocolError):
        failed.receive(b"nonsense")
    for step in (lambda: failed.receive(b"x"), failed.receive_eof):
        with pytest.raises(RuntimeError, match="not allowed in FAILED"):
            step()
    done = handshake(True)
    done.receive(CLIENT_HELLO.encode())
    done.data_to_send()
    with pytest.raises(RuntimeError, match="FAILURE is not allowed in DONE"):
        done.receive_eof()


# ---- refusals


def told_to_client(error: ProtocolError) -> str:
    """Return what a real client raises when it is sent the server's reply."""
    return str(failure(error.reply, False, RefusedError))


def told_to_server(error: ProtocolError) -> str:
    """Return the text of the ERROR record that a client replies with."""
    kind, flags, reserved, frame_count, header_bytes, sequence = struct.unpack_from(
        "<BBHIQQ", error.reply
    )
    assert (kind, flags, reserved, frame_count, sequence) == (3, 0, 0, 0, 0)
    assert len(error.reply) == 24 + header_bytes and header_bytes <= 4096
    return error.reply[24:].decode()


def test_server_refuses_by_configuration():
    def refuse(peer):
        return f"{peer.scheme}:// is not encrypted: use fabric+tls://"

    error = failure(CLIENT_HELLO.encode(), True, RefusedError, refuse=refuse)
    assert "the server refused the connection: fabric:// is not encrypted" in told_to_client(error)


def test_client_refuses_by_configuration():
    error = failure(SERVER_HELLO.encode(), False, RefusedError, refuse=lambda peer: "no: ö" * 2000)
    assert told_to_server(error).startswith("no: ö")


def test_refusal_needs_a_reason():
    side = handshake(True, refuse=lambda peer: None)
    side.receive(CLIENT_HELLO.encode())
    assert side.done


def test_text_of_a_refusal_is_shown_on_one_line_without_control_characters():
    error = failure(greeting({"error": "a\n\x1b[31mb"}), False, RefusedError)
    assert str(error) == "the server refused the connection: a ?[31mb"
    assert error.reply == b""


@pytest.mark.parametrize("server_side", [True, False])
def test_other_major_version(server_side):
    error = failure(preamble(5, major=2), server_side, VersionMismatchError)
    assert "version 2" in str(error) and "version 1" in str(error) and "install" in str(error)
    if server_side:
        assert "version 2" in told_to_client(error)
    else:
        assert error.reply == b""


@pytest.mark.parametrize("hello_bytes", [0, HELLO_BYTES_LIMIT + 1, 2**32 - 1])
@pytest.mark.parametrize("server_side", [True, False])
def test_oversize_hello_is_refused_before_it_arrives(server_side, hello_bytes):
    error = failure(preamble(hello_bytes), server_side, LimitError)
    assert str(hello_bytes) in str(error) and "65536" in str(error)
    if server_side:
        assert str(hello_bytes) in told_to_client(error)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\xc1", "cannot be decoded"),
        (b"\x81", "incomplete"),
        (b"\x80\x80", "extra data"),
        (b"\xc0", "NoneType, not a map"),
        (b"\x90", "list, not a map"),
        (b"\x81\x01\x02", "int is not allowed"),
        (b"\x81\xc4\x01a\x02", "not a name"),
        (b"\x81\xa1\x1b\x02", "not a name"),
        (b"\x82\xa1a\x02\xa1a\x02", "the same key twice"),
        (b"\x81\xa1a\xa1\xff", "utf-8"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "max_array_len"),
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", "max_map_len"),
        (b"\x81\xa1a" + msgpack.packb("x" * 4097), "max_str_len"),
        (b"\x81\xa1a" + msgpack.packb(bytes(4097)), "max_bin_len"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "incomplete"),
        (b"\x81\xa1a\xd6\xff\0\0\0\0", "max_ext_len"),
        (b"\x81\xa1a" + b"\x91" * 20 + b"\xc0", "nested deeper than 16"),
        (b"\x81\xa1a" + b"\x91" * 60000 + b"\xc0", "cannot be decoded"),
        (msgpack.packb({"a": [[0] * 100] * 6}), "more than 512"),
        (msgpack.packb({"a": [[{}] * 250] * 250}), "more than 512"),
        (msgpack.packb({"a": [{str(n): 0 for n in range(200)}] * 3}), "more than 512"),
    ],
)
@pytest.mark.parametrize("server_side", [True, False])
def test_hello_that_cannot_be_decoded(server_side, body, expected):
    error = failure(greeting(body), server_side)
    assert expected in str(error)
    assert expected in (told_to_client if server_side else told_to_server)(error)


BAD_FIELDS = [
    *((key, ...) for key in ("scheme", "paths", "memory")),
    *((key, bad) for key in ("scheme", "software") for bad in (1, None, b"x", "x" * 257, "\x1b")),
    *((key, bad) for key in ("paths", "memory", "authentication", "features")
      for bad in ("stream", None, {}, [1], [["x"]], ["x" * 257], ["\n"])),
    *(("pid", bad) for bad in (-1, 1.0, "1", True, None)),
    *(("limits", bad) for bad in ([], None, {"frames": -1}, {"frames": "1"}, {"frames": True})),
    *(("limits", bad) for bad in ({"frames": 0}, {"header": 255}, {"message": 255})),
    *(("error", bad) for bad in (1, None, ["x"], b"x")),
]  # fmt: skip


@pytest.mark.parametrize(("key", "bad"), BAD_FIELDS)
def test_every_field_is_checked(key, bad):
    error = failure(greeting(good(**{key: bad})), True)
    assert repr(key) in str(error)
    assert repr(key) in told_to_client(error)


def test_no_more_is_decoded_than_a_hello_may_hold(monkeypatch):
    """64 KiB of maps cost the event loop what a few hundred entries do."""
    looked_at = []
    is_name = hello_module.is_name
    monkeypatch.setattr(hello_module, "is_name", lambda name: looked_at.append(1) or is_name(name))
    failure(greeting(msgpack.packb({"a": [[{"a": 0}] * 200] * 80})[:65536]), True)
    assert len(looked_at) < hello_module.ITEM_COUNT_LIMIT


def test_the_least_limits_and_the_most_entries_are_taken():
    entries = {str(n): 0 for n in range(200)}
    # Of the hello itself: its map with 5 entries, two arrays with one each, and a map with three.
    spare = hello_module.ITEM_COUNT_LIMIT - 6 - 4 - 4 - 201 - 1
    content = good(limits=dict(hello_module.LEAST_LIMITS), a=entries)
    content["b"] = [0] * (spare // 2)
    side = handshake(True)
    side.receive(greeting(content))
    assert side.peer.limits == {"frames": 1, "header": 256, "message": 256}


def test_empty_error_excuses_nothing():
    assert "lacks the field 'scheme'" in str(failure(greeting({"error": ""}), True))


def test_every_field_of_a_hello_has_a_check():
    assert set(hello_module.FIELD_CHECKS) == set(Hello.__dataclass_fields__) - {"described"}


@given(st.binary(max_size=300), st.booleans())
def test_random_hellos_never_raise_anything_else(body, server_side):
    side = handshake(server_side)
    try:
        side.receive(greeting(body) if body else preamble(0))
    except ProtocolError:
        assert side.state is State.FAILED


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
)


@given(st.sampled_from(sorted(hello_module.FIELD_CHECKS)), ANYTHING)
def test_any_value_of_a_field_is_taken_as_it_is_or_refused(key, value):
    side = handshake(True)
    try:
        side.receive(greeting(good(**{key: value})))
    except ProtocolError:
        assert side.state is State.FAILED and side.peer is None
    else:
        taken = getattr(side.peer, key)
        assert (list(taken) if isinstance(taken, tuple) else taken) == value


@given(st.binary(min_size=PREAMBLE_BYTES, max_size=40), st.booleans())
def test_random_bytes_are_foreign(data, server_side):
    with pytest.raises(ForeignProtocolError) as caught:
        handshake(server_side).receive(data)
    assert len(str(caught.value)) < 300


# ---- the peer closes


@pytest.mark.parametrize(
    ("server_side", "data", "kind", "expected"),
    [
        (False, b"", ProtocolError, "server closed the connection before its hello (is the addr"),
        (True, b"", ProtocolError, "client closed the connection before its hello"),
        (False, b"\x89fab", ProtocolError, "in the middle"),
        (True, preamble(9), ProtocolError, "in the middle"),
        (True, preamble(9) + b"x", ProtocolError, "in the middle"),
        (True, CLIENT_HELLO.encode(), ProtocolError, "in the middle"),
        (
            True,
            b"PO",
            ForeignProtocolError,
            "(its first bytes are b'PO",
        ),
        (
            False,
            b"\n",
            ForeignProtocolError,
            "fabric:// (its first bytes are b'\\n",
        ),
    ],
)
def test_eof_before_the_end(server_side, data, kind, expected):
    side = handshake(server_side)
    assert side.receive(data) == len(data)
    with pytest.raises(kind) as caught:
        side.receive_eof()
    assert expected in str(caught.value)
    assert side.state is State.FAILED

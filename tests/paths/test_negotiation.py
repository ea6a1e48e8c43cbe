"""The path of a pair: the table, and that both sides choose the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_fabric import providers
from dask_fabric.errors import ProtocolError
from dask_fabric.paths.negotiation import Agreement, by_side, decode_found, encode_found
from dask_fabric.wire.hello import PREAMBLE, Hello

PLAIN = Hello()
CMA = Hello(
    paths=("stream", "cma"), boot="one", described={"cma": {"address": 4096, "nonce": b"n" * 16}}
)
TRANSPORTS = ("posix", "tcp", "rc_mlx5")
SCOPE = {"ipc": "ipc:[1]", "pid": "pid:[2]", "user": "0 of user:[3]"}
UCX = {"version": "1.18.0", "transports": TRANSPORTS, "address": b"a", "token": 1, "scope": SCOPE}
BOTH = replace(CMA, paths=("stream", "cma", "ucx"), described={**CMA.described, "ucx": UCX})
ELSEWHERE = replace(BOTH, boot="two")


def off(hello, path, reason):
    paths = tuple(known for known in hello.paths if known != path)
    return replace(hello, paths=paths, refused={**hello.refused, path: reason})


def saying(hello, **described):
    return replace(hello, described={**hello.described, **described})


def objection(path, client, server, memory="host"):
    return Agreement(client, server).objection(providers.by_name()[path], memory)


def choose(client, server, found):
    return Agreement(client, server).choose(by_side("client", found))


def candidates(client, server):
    return [provider.name for provider in Agreement(client, server).candidates]


def insisted(client, server):
    return [provider.name for provider in Agreement(client, server).insisted]


def with_ucx(hello, **changed):
    return saying(hello, ucx={**hello.described["ucx"], **changed})


def beside(hello, *transports, **scope):
    """A process of the same host: which transports it has, and what of its scope is another."""
    return with_ucx(hello, transports=transports, scope={**SCOPE, **scope})


def insisting(hello):
    return replace(off(hello, "cma", "ucx only"), scheme="fabric+ucx")


TABLE = {
    "both can": (CMA, CMA, {}, "cma", {"ucx": "client: its version does not know this path"}),
    "cma before ucx": (BOTH, BOTH, {}, "cma", {"ucx": "cma is better"}),
    "an old client": (
        PLAIN, CMA, {}, "stream", {"cma": "client: its version does not know this path"},
    ),
    "an old server": (
        CMA, PLAIN, {}, "stream", {"cma": "server: its version does not know this path"},
    ),
    "the client will not": (off(CMA, "cma", "no"), CMA, {}, "stream", {"cma": "client: no"}),
    "the server will not": (CMA, off(CMA, "cma", "no"), {}, "stream", {"cma": "server: no"}),
    "neither will": (
        off(CMA, "cma", "mine"), off(CMA, "cma", "yours"), {}, "stream", {"cma": "client: mine"},
    ),
    "the client cannot": (CMA, CMA, {"cma": "EPERM"}, "stream", {"cma": "client: EPERM"}),
    "two hosts": (
        CMA, replace(CMA, boot="two"), {}, "stream",
        {"cma": "the two processes are on different hosts"},
    ),
    "nothing to try": (
        saying(CMA, cma={}), CMA, {}, "stream",
        {"cma": "client: its hello has no description of this path: use the same release"},
    ),
    "nothing of ucx": (
        saying(BOTH, ucx={}), ELSEWHERE, {}, "stream",
        {"ucx": "client: its hello has no description of this path: use the same release"},
    ),
    "rdma between hosts": (
        BOTH, ELSEWHERE, {}, "ucx", {"cma": "the two processes are on different hosts"},
    ),
    "no rdma between hosts": (
        with_ucx(BOTH, transports=("posix", "tcp")), ELSEWHERE, {}, "stream",
        {"ucx": "UCX has no RDMA in common between the two, and the stream is as good as its TCP"},
    ),
    "shared memory where cma is off": (
        off(BOTH, "cma", "no"), BOTH, {}, "ucx", {"cma": "client: no"},
    ),
    "rdma where cma is off": (
        off(BOTH, "cma", "no"), beside(BOTH, "rc_mlx5", "tcp"), {}, "ucx", {"cma": "client: no"},
    ),
    "tcp only, within a host": (
        off(BOTH, "cma", "no"), beside(BOTH, "tcp"), {}, "stream",
        {"ucx": "UCX has neither shared memory nor RDMA in common between the two, and the stream "
                "is as good as its TCP"},
    ),
    "cma of ucx brings no message": (
        off(with_ucx(BOTH, transports=("cma", "knem", "tcp")), "cma", "no"),
        beside(BOTH, "cma", "knem", "tcp"), {}, "stream",
        {"ucx": "UCX has neither shared memory nor RDMA in common between the two, and the stream "
                "is as good as its TCP"},
    ),
    "pid namespaces": (
        off(BOTH, "cma", "no"), beside(BOTH, *TRANSPORTS, pid="pid:[9]"), {}, "stream",
        {"ucx": "UCX's shared memory fails between different pid namespaces, and UCX tries "
                "nothing else unless it is left out (UCX_TLS=^sm)"},
    ),
    "users": (
        off(BOTH, "cma", "no"), beside(BOTH, *TRANSPORTS, user="7 of user:[3]"), {}, "stream",
        {"ucx": "UCX's shared memory fails between different users, and UCX tries nothing else "
                "unless it is left out (UCX_TLS=^sm)"},
    ),
    "pid namespaces, and rdma alone": (
        off(BOTH, "cma", "no"), beside(BOTH, "rc_mlx5", "tcp", pid="pid:[9]"), {}, "ucx", {},
    ),
    "ipc namespaces": (
        off(BOTH, "cma", "no"), beside(BOTH, "posix", "tcp", ipc="ipc:[9]"), {}, "stream",
        {"ucx": "UCX shares no memory between different IPC namespaces, and has no RDMA in common "
                "between the two, and the stream is as good as its TCP"},
    ),
    "ipc namespaces, and rdma": (
        off(BOTH, "cma", "no"), beside(BOTH, *TRANSPORTS, ipc="ipc:[9]", pid="pid:[9]"), {}, "ucx",
        {},
    ),
    "namespaces of two hosts": (
        BOTH, beside(ELSEWHERE, *TRANSPORTS, ipc="ipc:[9]", pid="pid:[9]"), {}, "ucx", {},
    ),
    "an older side does not tell its namespaces": (
        off(BOTH, "cma", "no"), with_ucx(BOTH, scope={}), {}, "ucx", {"cma": "client: no"},
    ),
    "versions of ucx": (
        with_ucx(BOTH, version="1.13.1"), ELSEWHERE, {}, "stream",
        {"ucx": "client: UCX 1.13.1, server: UCX 1.18.0; both must have the same version"},
    ),
    "ucx that is insisted on": (
        replace(with_ucx(off(BOTH, "cma", "ucx only"), transports=("tcp",)), scheme="fabric+ucx"),
        with_ucx(ELSEWHERE, transports=("tcp",)), {}, "ucx", {"cma": "client: ucx only"},
    ),
    "insisted on with its tcp, between ipc namespaces": (
        insisting(BOTH), beside(BOTH, "posix", "tcp", ipc="ipc:[9]"), {}, "ucx", {},
    ),
    "insisted on with nothing in common": (
        insisting(BOTH), beside(BOTH, "sysv", "self"), {}, "stream",
        {"ucx": "UCX has neither shared memory nor RDMA in common between the two, nor TCP"},
    ),
    "insisted on with what brings no message": (
        insisting(with_ucx(BOTH, transports=("self", "cma", "cuda_copy"))),
        beside(BOTH, "self", "cma", "cuda_copy"), {}, "stream",
        {"ucx": "UCX has neither shared memory nor RDMA in common between the two, nor TCP"},
    ),
    "insisted on between hosts with shared memory": (
        insisting(BOTH), with_ucx(ELSEWHERE, transports=("posix",)), {}, "stream",
        {"ucx": "UCX has no RDMA in common between the two, nor TCP"},
    ),
    "insisted on between pid namespaces": (
        insisting(BOTH), beside(BOTH, *TRANSPORTS, pid="pid:[9]"), {}, "stream",
        {"ucx": "UCX's shared memory fails between different pid namespaces, and UCX tries "
                "nothing else unless it is left out (UCX_TLS=^sm)"},
    ),
}  # fmt: skip


GPU_TRANSPORTS = ("posix", "tcp", "rc_mlx5", "cuda_copy", "cuda_ipc")
GPU = with_ucx(replace(BOTH, memory=("host", "cuda")), transports=GPU_TRANSPORTS)
GPU_ELSEWHERE = replace(GPU, boot="two")

DEVICE_TABLE = {
    "one host": (GPU, GPU, {}, ("cma", "ucx"), {"ucx": "cma is better", "cma (cuda)": None}),
    "two hosts": (GPU, GPU_ELSEWHERE, {}, ("ucx", "ucx"), {"stream (cuda)": "ucx is better"}),
    "only one has a device": (GPU, BOTH, {}, ("cma", None), {"ucx": "cma is better"}),
    "no cuda in ucx": (
        with_ucx(GPU, transports=TRANSPORTS), GPU, {}, ("cma", "stream"),
        {"ucx (cuda)": "UCX has neither cuda_ipc nor cuda_copy in common between the two"},
    ),
    "ipc without shared memory": (
        with_ucx(GPU, transports=("tcp", "cuda_ipc")), GPU, {}, ("cma", "ucx"),
        {"ucx": "UCX has neither shared memory nor RDMA in common between the two, and the "
                "stream is as good as its TCP"},
    ),
    "copies over tcp": (
        with_ucx(GPU, transports=("tcp", "cuda_copy")), GPU, {}, ("cma", "stream"),
        {"ucx (cuda)": "UCX has neither shared memory nor RDMA in common between the two, and the "
                       "stream is as good as its TCP"},
    ),
    "ipc between pid namespaces": (
        with_ucx(GPU, transports=("tcp", "cuda_ipc")),
        beside(GPU, "tcp", "cuda_ipc", pid="pid:[9]"), {}, ("cma", "stream"),
        {"ucx (cuda)": "UCX shares no memory between different pid namespaces, and has no RDMA in "
                       "common between the two, and the stream is as good as its TCP"},
    ),
    "rdma within a host": (
        with_ucx(GPU, transports=("rc_mlx5", "cuda_copy")), GPU, {}, ("cma", "ucx"), {},
    ),
    "no rdma between hosts": (
        with_ucx(GPU, transports=("posix", "cuda_ipc")), GPU_ELSEWHERE, {}, ("stream", "stream"),
        {"ucx (cuda)": "UCX has no RDMA in common between the two, and the stream is as good as "
                       "its TCP"},
    ),
    "ucx that is insisted on": (
        replace(with_ucx(off(GPU, "cma", "no"), transports=("tcp", "cuda_copy")),
                scheme="fabric+ucx"),
        GPU, {}, ("ucx", "ucx"), {"cma": "client: no"},
    ),
    "ucx is off": (
        off(GPU, "ucx", "off"), GPU, {}, ("cma", "stream"),
        {"ucx": "client: off", "ucx (cuda)": "client: off"},
    ),
    "the client cannot": (
        GPU, GPU, {"ucx": "no"}, ("cma", "stream"), {"ucx (cuda)": "client: no"},
    ),
    "cma fails": (GPU, GPU, {"cma": "EPERM"}, ("ucx", "ucx"), {"cma": "client: EPERM"}),
}  # fmt: skip


@pytest.mark.parametrize("row", DEVICE_TABLE)
def test_the_table_of_devices(row):
    client, server, found, expected, refused = DEVICE_TABLE[row]
    choice = choose(client, told(server), found)
    assert choice == choose(told(client), server, found)
    assert (choice.paths["host"], choice.paths.get("cuda")) == expected
    assert {name: choice.refused.get(name) for name in refused} == refused


def test_a_path_that_only_devices_can_take_is_tried():
    client = with_ucx(GPU, transports=("tcp", "cuda_ipc"))
    assert objection("ucx", client, GPU) and objection("ucx", client, GPU, "cuda") == ""
    assert set(candidates(client, GPU)) == {"cma", "ucx"}
    assert candidates(client, replace(GPU, memory=("host",))) == ["cma"]


def test_what_is_left_without_a_path():
    choice = choose(GPU, GPU_ELSEWHERE, {}).without("ucx", "broken")
    assert choice.paths == {"host": "stream", "cuda": "stream"}
    assert choice.refused["ucx"] == choice.refused["ucx (cuda)"] == "broken"
    choice = choose(GPU, GPU, {}).without("ucx", "broken")
    assert choice.paths == {"host": "cma", "cuda": "stream"}
    assert (choice.refused["ucx"], choice.refused["ucx (cuda)"]) == ("cma is better", "broken")


def told(hello):
    """The hello as the other side reads it."""
    return Hello.decode(hello.encode()[PREAMBLE.size :])


@pytest.mark.parametrize("row", TABLE)
def test_the_table(row):
    client, server, found, path, refused = TABLE[row]
    choice = choose(client, server, found)
    assert choice.paths == {"host": path}
    assert {name: choice.refused.get(name) for name in refused} == refused
    assert path not in choice.refused


@pytest.mark.parametrize("row", TABLE)
def test_both_sides_read_the_same_from_what_was_said(row):
    client, server, found, _, _ = TABLE[row]
    heard = decode_found(encode_found(found))
    assert choose(client, told(server), found) == choose(told(client), server, heard)


@pytest.mark.parametrize("row", TABLE)
def test_only_what_neither_hello_objects_to_is_tried(row):
    client, server, _, _, _ = TABLE[row]
    tried = candidates(client, server)
    assert "stream" not in tried
    assert set(tried) == {path for path in ("cma", "ucx") if not objection(path, client, server)}


def test_who_insists():
    ucx = replace(PLAIN, scheme="fabric+ucx")
    assert insisted(ucx, PLAIN) == ["ucx"]
    assert insisted(PLAIN, ucx) == insisted(ucx, ucx) == insisted(ucx, PLAIN)
    assert not insisted(PLAIN, PLAIN)


DESCRIBED_CMA = [CMA.described["cma"], {"address": -1, "nonce": b""}, {"address": 1}, {"x": [1]}]
DESCRIBED_UCX = [
    {},
    UCX,
    {**UCX, "version": "2"},
    {**UCX, "transports": ("tcp",)},
    GPU.described["ucx"],
    {**UCX, "scope": {**SCOPE, "pid": "pid:[9]"}},
    {**UCX, "scope": {"ipc": "ipc:[9]"}},
    {**UCX, "scope": ["pid"]},
    {**UCX, "transports": 7},
    {**UCX, "token": -1},
    {"version": "1"},
]
names = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=20).filter(
    str.isprintable
)
reasons = st.dictionaries(st.sampled_from(["cma", "ucx", "stream", "other"]), names, max_size=3)
hellos = st.builds(
    Hello,
    scheme=st.sampled_from(["fabric", "fabric+tcp", "fabric+ucx"]),
    paths=st.lists(st.sampled_from(["stream", "cma", "ucx", "other"]), max_size=4).map(tuple),
    refused=reasons,
    memory=st.sampled_from([("host",), ("host", "cuda"), ("cuda",), ()]),
    boot=st.sampled_from(["", "one", "two"]),
    described=st.fixed_dictionaries(
        {
            "cma": st.sampled_from([{}, *DESCRIBED_CMA]),
            "ucx": st.sampled_from(DESCRIBED_UCX),
        }
    ),
)


@given(hellos, hellos, reasons)
def test_whatever_is_said_both_sides_choose_the_same_and_know_why(client, server, found):
    mine = choose(client, told(server), found)
    yours = choose(told(client), server, decode_found(encode_found(found)))
    assert mine == yours
    path = mine.paths["host"]
    assert path in ("cma", "ucx", "stream")
    assert set(mine.refused) | {path} >= {"cma", "ucx"}
    assert path not in mine.refused and all(mine.refused.values())
    assert ("cuda" in mine.paths) == ("cuda" in client.memory and "cuda" in server.memory)
    if "cuda" in mine.paths:
        assert {"ucx (cuda)", "stream (cuda)"} - mine.refused.keys() == {
            f"{mine.paths['cuda']} (cuda)"
        }
    for path in mine.paths.values():
        if path != "stream":
            assert path in client.paths and path in server.paths and path not in found
            assert path in candidates(client, server)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x80", b"\x90", b"\xa1x", b"\x81\xa3cma\x01", b"\x81\xa3cma\xa1\n", b"\xff" * 9],
)
def test_findings_that_are_no_map_of_reasons(content):
    with pytest.raises(ProtocolError):
        decode_found(content)


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        *(("ucx", {"scope": scope}) for scope in ([], {"pid": 1}, {"p": "a\nb"}, {"p": "x" * 257})),
        *(("ucx", {name: value}) for name in UCX for value in (None, -1.5, [7], "x" * 300)),
        ("ucx", {"transports": ["a", 5]}),
        ("cma", {"address": -1}),
        ("cma", {"address": True}),
        ("cma", {"address": "4096"}),
        ("cma", {"nonce": "text"}),
        ("cma", {"nonce": None}),
    ],
)
def test_a_path_that_is_described_in_no_sense_is_not_taken(path, changed):
    odd = saying(BOTH, **{path: {**BOTH.described[path], **changed}})
    for client, server in ((odd, told(BOTH)), (told(BOTH), odd)):
        choice = choose(client, server, {})
        assert choice.paths == {"host": "cma" if path == "ucx" else "ucx"}
        assert "invalid description" in choice.refused[path]


def test_a_scope_may_hold_what_a_later_version_tells():
    later = with_ucx(off(BOTH, "cma", "no"), scope={**SCOPE, "more": "than is known"})
    assert choose(told(later), BOTH, {}).paths == {"host": "ucx"}

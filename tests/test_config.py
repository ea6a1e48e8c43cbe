"""The configuration: defaults, schema and page agree, and every bad value names its key."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import traceback
from dataclasses import FrozenInstanceError, fields
from importlib.resources import files
from pathlib import Path

import dask.config
import jsonschema
import psutil
import pytest
import yaml

from dask_fabric import config, providers
from dask_fabric.cli.configuration import inspect_configuration
from dask_fabric.config import KEYS, Settings, load
from dask_fabric.errors import ConfigError
from dask_fabric.keys import SECRET

PATHS = {provider.name for provider in providers.found()}
PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def pristine():
    """Let each test start from the defaults and from warnings not yet given."""
    config._warn_unknown.cache_clear()
    with dask.config.set({"fabric": packaged("dask_fabric.yaml")["fabric"]}):
        yield


def packaged(name: str) -> dict:
    return yaml.safe_load(files("dask_fabric").joinpath(name).read_text())


def page_rows() -> dict[str, list[str]]:
    rows = [line.strip("|\n ").split(" | ") for line in PAGE.read_text().splitlines()]
    return {row[0].strip("`"): row for row in rows if row[0].startswith("`fabric.")}


def value_of(settings: Settings, name: str):
    section = name.partition(".")[0]
    of = getattr(settings.paths, section) if section in PATHS else settings
    return getattr(of, KEYS[name].field)


def leaves(node: dict, name: str = "") -> set[str]:
    """Return the dotted names of the properties of a schema that have none of their own."""
    if "properties" not in node:
        return {name}
    parts = node["properties"].items()
    return set().union(*(leaves(inner, f"{name}.{part}".strip(".")) for part, inner in parts))


# ---- defaults, schema and page


def test_defaults_validate_against_the_schema():
    schema = packaged("dask_fabric-schema.yaml")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(packaged("dask_fabric.yaml"), schema)
    with pytest.raises(jsonschema.ValidationError, match="max-idel"):
        jsonschema.validate({"fabric": {"pool": {"max-idel": 1}}}, schema)


def test_every_key_is_in_the_defaults_the_schema_the_page_and_the_settings():
    assert config.DEFAULTS.keys() == KEYS.keys()
    names = {f"fabric.{name}" for name in KEYS}
    assert leaves(packaged("dask_fabric-schema.yaml")) == names
    assert page_rows().keys() == names
    own = {key.field for name, key in KEYS.items() if name.partition(".")[0] not in PATHS}
    assert own == {field.name for field in fields(Settings)} - {"paths"}


@pytest.mark.parametrize("name", KEYS)
def test_page_tells_the_default(name):
    assert yaml.safe_load(page_rows()[f"fabric.{name}"][1].strip("`")) == config.DEFAULTS[name]


def test_default_settings():
    settings = load()
    assert settings.message_bytes_limit <= psutil.virtual_memory().total
    assert 1 <= settings.engine_thread_count <= 4
    assert settings == Settings(
        pool_max_idle_bytes=2**30,
        pool_idle_timeout_seconds=10.0,
        engine_thread_count=settings.engine_thread_count,
        busy_poll_seconds=pytest.approx(300e-6),
        stream_inline_bytes=65536,
        stream_bulk_bytes=2**20,
        unix_sockets=True,
        gpu_enabled=None,
        gpu_chunk_bytes=2**23,
        gpu_allocator="cupy",
        gpu_pool_size=None,
        frame_count_limit=16777216,
        header_bytes_limit=2**30,
        message_bytes_limit=settings.message_bytes_limit,
        queued_bytes_limit=2**28,
        queued_total_bytes_limit=settings.queued_total_bytes_limit,
        memory_timeout_seconds=30.0,
        handshake_count_limit=1000,
        auth_method="key",
        auth_munge_socket=None,
        auth_key=None,
        auth_key_file=None,
        auth_require=False,
        auth_local=False,
        auth_encrypt=False,
        auth_encrypt_local=False,
        history_file=None,
        history_size_bytes=2**24,
        history_interval_seconds=5.0,
        handshake_timeout_seconds=30.0,
        stalled_timeout_seconds=300.0,
        close_timeout_seconds=2.0,
        paths=settings.paths,
    )
    assert settings.paths._fields == ("shm", "cma", "ucx", "ofi", "lanes")
    assert settings.paths.shm._asdict() == {
        "enabled": True,
        "shares_results": True,
        "threshold_bytes": 2**20,
        "most_bytes": None,
    }
    assert settings.paths.cma._asdict() == {
        "enabled": True,
        "threshold_bytes": 131072,
        "allow_ptrace": True,
    }
    assert settings.paths.ucx._asdict() == {"enabled": None, "library": None, "options": ()}
    assert settings.paths.ofi._asdict() == {
        "enabled": None,
        "library": None,
        "provider": None,
        "domain": None,
        "options": (),
        "threshold_bytes": 131072,
    }
    with pytest.raises(FrozenInstanceError):
        settings.close_timeout_seconds = 1.0


# ---- values


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("pool.max-idle", "5 MB", 5_000_000),
        ("pool.max-idle", 0, 0),
        ("pool.idle-timeout", "500 ms", 0.5),
        ("pool.idle-timeout", 2, 2.0),
        ("engine.threads", 64, 64),
        ("engine.busy-poll", 0, 0.0),
        ("engine.busy-poll", "5ms", 5e-3),
        ("stream.inline", "1 MiB", 2**20),
        ("stream.bulk", "2 GiB", 2**31),
        ("unix-sockets", False, False),
        ("shm.enabled", True, True),
        ("shm.results", True, True),
        ("shm.threshold", "64 KiB", 65536),
        ("shm.max", None, None),
        ("shm.max", "2 GiB", 2**31),
        ("cma.enabled", False, False),
        ("cma.threshold", "64 KiB", 65536),
        ("cma.allow-ptrace", False, False),
        ("lanes.count", "auto", "auto"),
        ("lanes.count", 0, 0),
        ("lanes.count", 8, 8),
        ("lanes.threshold", "64 KiB", 65536),
        ("lanes.interfaces", [], ()),
        ("lanes.interfaces", "ib0, ib1", ("ib0", "ib1")),
        ("ucx.enabled", "auto", None),
        ("ucx.enabled", True, True),
        ("ucx.library", "/opt/ucx/lib", "/opt/ucx/lib"),
        ("ucx.library", "~/ucx/libucp.so.0", "~/ucx/libucp.so.0"),
        ("ucx.options", {"TLS": "^tcp"}, (("TLS", "^tcp"),)),
        (
            "ucx.options",
            {"rndv_thresh": 1, "IB-GPU": True},
            (("IB_GPU", "y"), ("RNDV_THRESH", "1")),
        ),
        ("ofi.provider", "verbs;ofi_rxm", "verbs;ofi_rxm"),
        ("ofi.domain", "cxi1", "cxi1"),
        ("ofi.options", {"tcp-iface": "eth0"}, (("FI_TCP_IFACE", "eth0"),)),
        ("ofi.threshold", "64 KiB", 65536),
        ("gpu.enabled", "auto", None),
        ("gpu.enabled", False, False),
        ("gpu.chunk", "64 KiB", 65536),
        ("gpu.allocator", "rmm", "rmm"),
        ("gpu.pool", None, None),
        ("gpu.pool", "20 GiB", 20 * 2**30),
        ("gpu.pool", 0.8, 0.8),
        ("gpu.pool", "0.8", 0.8),
        ("gpu.pool", 1, 1),
        ("limits.frames", 1, 1),
        ("limits.header", "256", 256),
        ("limits.message", "1 TiB", 2**40),
        ("limits.handshakes", 1, 1),
        ("limits.queued", 0, 0),
        ("limits.queued-total", "1 TiB", 2**40),
        ("auth.method", "munge", "munge"),
        ("auth.munge-socket", "/run/munge/other", "/run/munge/other"),
        ("auth.key", "0f" * 32, b"\x0f" * 32),
        ("auth.key-file", "~/fabric.key", "~/fabric.key"),
        ("auth.require", True, True),
        ("auth.local", True, True),
        ("auth.encrypt", True, True),
        ("auth.encrypt-local", True, True),
        ("history.file", "~/fabric.sqlite", "~/fabric.sqlite"),
        ("history.size", "1 MiB", 2**20),
        ("history.interval", "100 ms", 0.1),
        ("timeouts.handshake", 0.1, 0.1),
        ("timeouts.stalled", "2m", 120.0),
        ("timeouts.stalled", 0, 0.0),
        ("timeouts.close", 0, 0.0),
    ],
)
def test_good_values(name, value, expected):
    with dask.config.set({f"fabric.{name}": value}):
        assert value_of(load(), name) == expected


BAD_SIZES = ["", "MiB", "many", "-1", "1 furlong", "1e30", -1, 2.5, True, [], {"a": 1}]
BAD_TIMES = ["", "s", "soon", "-1", "1 furlong", "1e30", -1, float("nan"), float("inf"), True, []]
BAD_COUNTS = [0, -1, 1.0, "1", True, [], 2**32]
BAD_SWITCHES = [None, 0, 1, "yes", "false", [], {}]
BAD = {
    "pool.max-idle": [*BAD_SIZES, None],
    "pool.idle-timeout": [*BAD_TIMES, None],
    "engine.threads": [*BAD_COUNTS, 65],
    "engine.busy-poll": [*BAD_TIMES, None, "11ms"],
    "stream.inline": [*BAD_SIZES, None, "2 MiB"],
    "stream.bulk": [*BAD_SIZES, None],
    "unix-sockets": BAD_SWITCHES,
    "shm.enabled": BAD_SWITCHES,
    "shm.results": BAD_SWITCHES,
    "shm.threshold": [*BAD_SIZES, None, 65535],
    "shm.max": BAD_SIZES,
    "cma.enabled": BAD_SWITCHES,
    "cma.threshold": [*BAD_SIZES, None, 65535],
    "cma.allow-ptrace": BAD_SWITCHES,
    "lanes.count": [None, -1, 9, 2.0, True, "2", "", [], {}],
    "lanes.threshold": [*BAD_SIZES, None, 65535],
    "lanes.interfaces": [None, 1, {}, ["ib0", 1], ["a/b"], ["a b"], ["x" * 16], ["ib0"] * 9],
    "ucx.enabled": [None, 0, "yes", "", [], {}],
    "ofi.enabled": [None, 0, "yes", "", [], {}],
    "ofi.library": ["", "libfabric", "./lib", 5],
    "ofi.provider": ["", "udp;ofi_rxd", 5, True],
    "ofi.domain": ["", 5, "a b\n", []],
    "ofi.options": [None, [], {"FI_TCP_IFACE": "eth0"}, {5: 1}, {"A": None}],
    "ofi.threshold": [None, 0, "32 KiB", True],
    "ucx.library": ["", "ucx", "./lib", "/a\0b", 5, True, [], {}],
    "ucx.options": [
        None,
        "TLS=tcp",
        [],
        {"UCX_TLS": "tcp"},
        {"": 1},
        {"A=B": 1},
        {1: 1},
        {"A": []},
        {"A": None},
        {"A": "\0"},
    ],
    "gpu.enabled": [None, 0, "yes", "", [], {}],
    "gpu.chunk": [*BAD_SIZES, None, 65535],
    "gpu.allocator": [None, "", "torch", True, [], {}],
    "gpu.pool": [*BAD_SIZES, 0, 0.0, "0.0", 1.5, "1.5", float("nan")],
    "limits.frames": [*BAD_COUNTS, None],
    "limits.header": [*BAD_SIZES, None, 0, 255],
    "limits.message": [*BAD_SIZES, 0, 255],
    "limits.handshakes": [*BAD_COUNTS, None],
    "limits.queued": [*BAD_SIZES, None],
    "limits.queued-total": BAD_SIZES,
    "auth.method": [None, "", "KEY", "none", True, [], {}],
    "auth.munge-socket": ["", "socket", "/a\0b", 5, True, [], {}],
    "auth.key": ["", "0f" * 31, "0f" * 33, "0x" * 32, "0f" * 31 + "0\n", 5, True, b"\x0f" * 32],
    "auth.key-file": ["", "fabric.key", "~nobody-of-this-name/x", "/a\0b", 5, True, [], {}],
    "auth.require": BAD_SWITCHES,
    "auth.local": BAD_SWITCHES,
    "auth.encrypt": BAD_SWITCHES,
    "auth.encrypt-local": BAD_SWITCHES,
    "history.file": ["", "history.sqlite", "~nobody-of-this-name/x", "/a\0b", 5, True, [], {}],
    "history.size": [*BAD_SIZES, None, 2**20 - 1],
    "history.interval": [*BAD_TIMES, None, 0],
    "timeouts.handshake": [*BAD_TIMES, None, 0],
    "timeouts.stalled": [*BAD_TIMES, None],
    "timeouts.memory": [*BAD_TIMES, None],
    "timeouts.close": [*BAD_TIMES, None],
}


@pytest.mark.parametrize(("name", "value"), [(name, bad) for name in KEYS for bad in BAD[name]])
def test_bad_values_name_their_key(name, value):
    with dask.config.set({f"fabric.{name}": value}), pytest.raises(ConfigError) as caught:
        load()
    shown = "(not shown)" if KEYS[name].unit == SECRET else repr(value)
    assert f"fabric.{name} is {shown}; expected " in str(caught.value)


def test_a_key_is_not_shown():
    with dask.config.set({"fabric.auth.key": "0f" * 32}):
        assert "0f0f" not in repr(load()) and repr(b"\x0f" * 32) not in repr(load())


@pytest.mark.parametrize("name", ["auth", "auth.key-file", "auth.require"])
def test_a_key_in_the_wrong_place_is_not_shown(name):
    secret = "0f" * 32
    with dask.config.set({f"fabric.{name}": secret}):
        with pytest.raises(ConfigError, match=rf"fabric\.{name} is '\(not shown\)'") as caught:
            load()
        assert secret not in "".join(traceback.format_exception(caught.value))
        assert secret not in repr(inspect_configuration())


@pytest.mark.parametrize(
    ("name", "value"), [("fabric", 5), ("fabric.pool", "1 GiB"), ("fabric.limits", [])]
)
def test_value_in_the_place_of_a_section(name, value):
    with (
        dask.config.set({name: value}),
        pytest.raises(ConfigError, match=f"^{name} is .*; expected a mapping"),
    ):
        load()


@pytest.mark.parametrize(
    ("variable", "complaint"),
    [
        ("DASK_FABRIC", "fabric is 5; expected a mapping"),
        ("DASK_FABRIC__POOL", "fabric.pool is 5; expected a mapping"),
    ],
)
@pytest.mark.parametrize("first", ["dask", "dask_fabric.config"])
def test_a_variable_in_the_place_of_a_section(first, variable, complaint):
    program = f"import {first}; from dask_fabric.config import load; load()"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={**os.environ, variable: "5"}, capture_output=True, text=True
    )
    assert done.returncode == 1 and complaint in done.stderr.splitlines()[-1]


def test_inline_is_compared_with_bulk():
    with (
        dask.config.set({"fabric.stream.bulk": "1 KiB"}),
        pytest.raises(
            ConfigError, match=r"fabric\.stream\.inline .*fabric\.stream\.bulk.* '1 KiB'"
        ),
    ):
        load()


@pytest.mark.parametrize("section", [None, {}, {"pool": None}, {"pool": {"max-idle": "1 GiB"}}])
def test_what_is_not_given_has_its_default(section):
    expected = load()
    with dask.config.set({"fabric": section}):
        assert load() == expected


def test_given_values_are_told_as_they_are():
    with dask.config.set({"fabric": {"pool": {"max_idle": "5 GiB"}, "odd": {"er": 1}}}):
        assert config.given() == {"pool.max-idle": "5 GiB", "odd.er": 1}


# ---- unknown keys


def test_unknown_key_is_reported_once_with_the_likely_one(caplog):
    caplog.set_level(logging.WARNING)
    expected = load()
    with dask.config.set({"fabric.pool.max-idel": "5 GiB", "fabric.zzz": 1}):
        assert load() == expected
        with dask.config.set({"fabric.timeouts.close": "3s"}):
            load()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "fabric.pool.max-idel" in messages[0]
    assert messages[0].endswith("; did you mean fabric.pool.max-idle?")
    assert "fabric.zzz" in messages[1] and "did you mean" not in messages[1]


def test_no_key_of_authentication_is_ignored():
    """It is to protect somebody, and would not."""
    with (
        dask.config.set({"fabric.auth.requier": True}),
        pytest.raises(ConfigError, match=r"unknown key fabric.auth.requier .* fabric.auth.require"),
    ):
        load()


# ---- the cache


def test_values_are_checked_again_only_after_a_change():
    settings = load()
    assert load() is settings
    with dask.config.set({"fabric.engine.threads": 1}):
        assert load().engine_thread_count == 1
        with dask.config.set({"fabric.engine.threads": True}), pytest.raises(ConfigError):
            load()
    assert load() == settings


# ---- where values come from


@pytest.mark.parametrize("first", ["dask", "dask_fabric.config"])
def test_environment_wins_over_the_defaults(first):
    program = f"import {first}; from dask_fabric.config import load; print(load())"
    environment = {
        **os.environ,
        "DASK_FABRIC__POOL__MAX_IDLE": "5 MB",
        "DASK_FABRIC__ENGINE__THREADS": "3",
    }
    command = [sys.executable, "-c", program]
    output = subprocess.check_output(command, env=environment, text=True, stderr=subprocess.STDOUT)
    assert "pool_max_idle_bytes=5000000" in output and "engine_thread_count=3" in output
    assert output.count("\n") == 1  # no warning about an unknown key


def test_memory_limit_of_the_cgroup_or_of_its_ancestors(tmp_path):
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("proc/self/cgroup", "7:cpu,memory:/a\n0::/job/step\n")
    write("sys/fs/cgroup/job/memory.max", "3000\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    assert config.host_memory_bytes(tmp_path) == 3000
    write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000\n")
    config.host_memory_bytes.cache_clear()
    assert config.host_memory_bytes(tmp_path) == 2000


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_RSS"])
def test_memory_limit_of_the_process(tmp_path, monkeypatch, name):
    config.host_memory_bytes.cache_clear()
    kind = getattr(resource, name)
    limits = {kind: (1 << 29, -1)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind, (-1, -1)))
    assert config.host_memory_bytes(tmp_path) == 1 << 29
    config.host_memory_bytes.cache_clear()


def test_memory_limit_without_cgroups(tmp_path):
    assert config.host_memory_bytes(tmp_path) == psutil.virtual_memory().total

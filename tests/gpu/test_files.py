"""Reading files that may be missing."""

from dask_fabric.gpu.files import names_in, read_fields, read_int, read_text


def test_what_cannot_be_read_is_none(tmp_path):
    assert read_text(tmp_path) is None  # a folder
    assert read_text(tmp_path / "missing") is None
    assert read_int(tmp_path / "missing") is None
    assert read_fields(tmp_path / "missing") == {}
    assert names_in(tmp_path / "missing") == []


def test_bytes_that_are_no_text_do_no_harm(tmp_path):
    (tmp_path / "odd").write_bytes(b"\xff\n")
    assert read_text(tmp_path / "odd") == "\ufffd"
    assert read_int(tmp_path / "odd") is None


def test_numbers_and_fields(tree):
    numbers = tree.write("numbers", "4096\t131072\t-6")
    assert [read_int(numbers, i) for i in range(4)] == [4096, 131072, -6, None]
    fields = tree.write("fields", "CapEff:\t0000\nModel: \t NVIDIA: H200\nno colon")
    assert read_fields(fields) == {"CapEff": "0000", "Model": "NVIDIA: H200", "no colon": ""}


def test_names_are_counted_as_people_do(tree):
    for name in ("mlx5_10", "mlx5_2", "bnxt_re0"):
        tree.write(f"folder/{name}")
    assert names_in(tree.root / "folder") == ["bnxt_re0", "mlx5_2", "mlx5_10"]

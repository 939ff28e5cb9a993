"""Parquet files of pictures: every layout is read, in bounded memory, and what is bad is a row or says why."""

import datetime
import decimal
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CHECKOUT, Ran
from mfcli.errors import PictureError
from mfcli.inputs.sources import Selection, Source, iter_sources

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

Mf = Callable[..., Ran]
ORANGE, LEMON = CHECKOUT / "examples" / "orange.jpg", CHECKOUT / "examples" / "lemon.jpg"
BYTES = [b"one", None, b"", b"four"]
IMAGE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.parquet"


def write(path: Path, columns: dict[str, Any], types: dict[str, Any] | None = None, **options: Any) -> Path:
    arrays = {name: pyarrow.array(values, (types or {}).get(name)) for name, values in columns.items()}
    parquet.write_table(pyarrow.table(arrays), path, **options)
    return path


def sources(*arguments: Path | str, **options: Any) -> list[Source]:
    return list(iter_sources(map(str, arguments), selection=Selection(**options)))


def read(source: Source) -> bytes | str:
    """The bytes, or why there are none."""
    try:
        with source.open() as file:
            return file.read()
    except PictureError as error:
        return f"{error.code}: {error.message}"


NULL = "not_found: the picture of the row is null"


@pytest.mark.parametrize(
    ("values", "type"),
    [
        (BYTES, pyarrow.binary()),
        (BYTES, pyarrow.large_binary()),
        (BYTES, pyarrow.dictionary(pyarrow.int32(), pyarrow.binary())),
        ([value if value is None else {"bytes": value, "path": "a.jpg"} for value in BYTES], IMAGE),
        ([{"bytes": value, "path": None} for value in BYTES], IMAGE),
    ],
)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_columns_of_bytes(values: list[Any], type: Any, rows: int, path: Path) -> None:
    write(path, {"id": [1, 2, 3, 4], "text": ["a"] * 4, "image": values}, {"image": type}, row_group_size=rows)
    found = sources(path)
    assert [(source.input, source.member) for source in found] == [(str(path), str(row)) for row in range(4)]
    assert [read(source) for source in found] == [b"one", NULL, b"", b"four"]


@pytest.mark.parametrize("column", ["dictionary", "string", "struct"])
def test_columns_of_names(column: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a b.jpg").write_bytes(b"picture")
    names = ["a b.jpg", (tmp_path / "a b.jpg").as_uri(), str(tmp_path), "none.jpg", "http://localhost/a.jpg", None]
    values: dict[str, Any] = {
        "string": names,
        "dictionary": pyarrow.array(names).dictionary_encode(),
        "struct": pyarrow.array([{"bytes": None, "path": name} for name in names], IMAGE),
    }
    write(path, {"image": values[column], "id": range(6)})
    assert [read(source) for source in sources(path, offline=True)] == [
        b"picture",
        b"picture",
        "unsupported: is a folder, not a picture",
        "not_found: no such file",
        "network: not fetched while offline (offline=True, MF_OFFLINE or HF_HUB_OFFLINE)",
        NULL,
    ]


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ({"a": [1]}, None, "has no column of pictures; it has a (int64)"),
        ({}, None, "has no column of pictures; it has none"),
        (
            {f"c{n}": [n] for n in range(30)},
            "a",
            f"has no column a; it has {', '.join(f'c{n}' for n in range(20))}, 10",
        ),
        ({"a": [b"1"], "b": [b"2"]}, None, "has several columns that may be pictures, a, b: column=NAME"),
        ({"a": ["1"], "b": ["2"]}, None, "has several columns that may be pictures, a, b: column=NAME"),
        ({"a": [[b"1"]]}, None, "has no column of pictures; it has a (list<"),
        ({"a": [[b"1"]]}, "a", "column a is list<"),
        ({"a": [b"1"]}, "b", "has no column b; it has a"),
    ],
)
def test_columns_that_are_not_there(columns: dict[str, Any], column: str | None, message: str, path: Path) -> None:
    (source,) = sources(write(path, columns), column=column)
    assert (source.input, source.member) == (str(path), None)
    assert str(read(source)).startswith(f"unsupported: {message}")


def test_the_column_is_chosen(path: Path) -> None:
    write(path, {"a": [b"1"], "b": [b"2"], "c": ["none.jpg"]})
    assert read(sources(path, column="b")[0]) == b"2"
    assert read(sources(path, column="c")[0]) == "not_found: no such file"


def test_kept_columns_become_json(path: Path) -> None:
    when = datetime.datetime(2024, 5, 1, 12, 30)
    columns = {
        "image": [b"x"],
        "label": [7],
        "ratio": [float("nan")],
        "when": pyarrow.array([when], pyarrow.timestamp("ns")),
        "price": [decimal.Decimal("1.50")],
        "tags": [["a", None]],
        "meta": [{"width": 3, "bad": float("inf")}],
        "none": pyarrow.array([None], pyarrow.string()),
        "is": [True],
    }
    (source,) = sources(write(path, columns), keep=tuple(name for name in columns if name != "image"))
    assert json.loads(json.dumps(source.kept, allow_nan=False)) == {
        "label": 7,
        "ratio": None,
        "when": "2024-05-01 12:30:00.000000000",
        "price": "1.50",
        "tags": ["a", None],
        "meta": {"width": 3, "bad": None},
        "none": None,
        "is": True,
    }
    for keep, message in (
        ("image", "column image has bytes, which rows cannot keep"),
        ("x", "has no column x; it has"),
    ):
        assert str(read(sources(path, keep=(keep,))[0])).startswith(f"unsupported: {message}")


def test_one_row_an_interval_and_a_list(path: Path, tmp_path: Path) -> None:
    write(path, {"image": [str(row).encode() for row in range(12)]}, row_group_size=5)
    assert [read(source) for source in sources(f"{path}/7")] == [b"7"]
    assert [read(source) for source in sources(f"{path}/1[01]")] == [b"10", b"11"]
    assert [read(source) for source in sources(f"{path}/12")] == ["not_found: no such member in the archive"]
    names = tmp_path / "list"
    names.write_text("".join(f"{path}/{row}\n" for row in (3, 4, 11, 2, 99, 2)))
    found = iter_sources([], files_from=str(names))
    missing = "not_found: no such member in the archive"
    assert [read(source) for source in found] == [b"3", b"4", b"11", b"2", missing, b"2"]


def test_groups_without_a_wanted_row_are_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {"image": [str(row).encode() for row in range(12)]}, row_group_size=5)
    seen: list[int] = []
    original = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile,
        "iter_batches",
        lambda self, *a, row_groups, **o: seen.extend(row_groups) or original(self, *a, row_groups=row_groups, **o),
    )
    assert [read(source) for source in sources(f"{path}/7")] == [b"7"]
    assert seen == [1]


def test_rows_are_listed_without_reading_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {"image": [b"x"] * 7}, row_group_size=3)
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("read"))
    assert [source.member for source in sources(path, names_only=True)] == list("0123456")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[:-1], "truncated: is truncated: its data ends early"),
        (lambda data: data[:9000], "truncated: is truncated: its data ends early"),
        (lambda _: b"PAR1", "decode: is damaged"),
        (lambda _: b"", "decode: is not a Parquet file"),
        (lambda _: b"something else", "decode: is not a Parquet file"),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", "decode: is damaged"),
        (lambda data: data[:-60] + bytes(50) + data[-10:], "decode: is damaged"),
    ],
)
def test_damaged_files(damage: Callable[[bytes], bytes], expected: str, path: Path) -> None:
    write(path, {"image": [bytes(1000)] * 20}, use_dictionary=False, compression="none")
    path.write_bytes(damage(path.read_bytes()))
    (source,) = sources(path)
    assert (source.member, str(read(source)).startswith(expected)) == (None, True), read(source)


def test_the_rows_before_the_damage_are_read(path: Path) -> None:
    write(path, {"image": [bytes([row]) * 1000 for row in range(20)]}, use_dictionary=False, row_group_size=5)
    data = bytearray(path.read_bytes())
    at = parquet.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[at : at + 30] = bytes(30)
    path.write_bytes(data)
    *rows, last = sources(path)
    assert [read(source) for source in rows] == [bytes([row]) * 1000 for row in range(10)]
    assert (last.member, str(read(last))[:18]) == (None, "decode: is damaged")


def test_a_picture_over_the_limit(path: Path) -> None:
    write(path, {"image": [b"123", b"12"]})
    found = [read(source) for source in sources(path, max_bytes=2)]
    assert found == ["too_large: is over 2 bytes when unpacked", b"12"]


def test_memory_does_not_grow_with_a_row_group(path: Path) -> None:
    schema = pyarrow.schema({"image": pyarrow.binary()})
    picture = bytes(range(256)) * 400
    with parquet.ParquetWriter(path, schema, use_dictionary=False, data_page_size=2**20, write_batch_size=8) as file:
        file.write_table(pyarrow.table({"image": [picture] * 1500}, schema))
    assert parquet.ParquetFile(path).num_row_groups == 1
    pool = pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    most = 0
    for source in iter_sources([str(path)]):
        assert len(read(source)) == len(picture)
        most = max(most, pool.bytes_allocated() - before)
    assert most + tracemalloc.get_traced_memory()[1] < 60e6  # of 154 MB
    tracemalloc.stop()


@pytest.fixture
def dataset(path: Path) -> Path:
    """Two pictures and a row without one, as Hugging Face stores them."""
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in (ORANGE, LEMON)]
    return write(path, {"image": [*images, None], "label": [950, 951, None], "id": ["a", 'b "', "c"]}, {"image": IMAGE})


def test_predict(mf: Mf, dataset: Path, tmp_path: Path) -> None:
    command = ["predict", dataset, "--keep", "id", "--keep", "label", "-q"]
    ran = mf(*command, "--format", "jsonl")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, [row["member"] for row in rows]) == (5, ["0", "1", "2"])
    assert [row["kept"] for row in rows] == [
        {"id": "a", "label": 950},
        {"id": 'b "', "label": 951},
        {"id": "c", "label": None},
    ]
    files = [json.loads(line) for line in mf("predict", ORANGE, LEMON, "--format", "jsonl", "-q").out.splitlines()]
    assert [row["predictions"] for row in rows] == [*(row["predictions"] for row in files), []]
    for suffix in ("csv", "parquet", "json", "jsonl"):
        assert mf(*command, "-o", tmp_path / f"a.{suffix}").code == 5
    (tmp_path / "piped.jsonl").write_text(ran.out)
    for name in ("a.jsonl", "piped.jsonl", "a.parquet", "a.json"):  # of these, the first has settings beside it
        assert mf("convert", tmp_path / name, "--format", "csv").out == (tmp_path / "a.csv").read_text()
    table = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["kept"] for row in table] == [
        {"id": "a", "label": "950"},
        {"id": 'b "', "label": "951"},
        {"id": "c", "label": None},
    ]
    assert mf(*command, "-o", tmp_path / "a.parquet", "--resume").code == 5
    assert mf("predict", dataset, "-o", dataset, "--overwrite").err.startswith(f"error: {dataset} is an input")


def test_columns_are_part_of_the_run(mf: Mf, dataset: Path, tmp_path: Path) -> None:
    runs = []
    for options in ([], ["--column", "image"], ["--keep", "id"], ["--keep", "id", "--keep", "label"]):
        out = tmp_path / "a.jsonl"
        assert mf("predict", dataset, *options, "-o", out, "--overwrite", "-q").code == 5
        runs.append(json.loads(out.read_text().splitlines()[0])["run"])
    assert len(set(runs)) == 4
    assert runs[0] == json.loads(mf("predict", ORANGE, "--format", "jsonl", "-q").out)["run"]
    ran = mf("predict", dataset, "--keep", "id", "-o", out, "--resume")
    message = f"error: {out} belongs to a different run: --keep id,label instead of --keep id"
    assert (ran.code, ran.err.splitlines()[0]) == (8, message)


def test_a_glob_and_a_file_beside_others(mf: Mf, dataset: Path, tmp_path: Path) -> None:
    ran = mf("predict", tmp_path / "*.parquet", ORANGE, "--template", "{input} {member} {status}", "-q")
    lines = [f"{dataset} 0 ok", f"{dataset} 1 ok", f"{dataset} 2 error", f"{ORANGE}  ok"]
    assert ran.out.splitlines() == lines
    ran = mf("predict", tmp_path)
    assert "1 .parquet" in ran.err
    assert str(dataset) in ran.err


def test_pyarrow_is_missed_before_any_work(mf: Mf, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in (dataset, f"{dataset}/0"):
        ran = mf("predict", name)
        hint = "hint: pip install 'metaformer-cli[scale]'\n"
        assert (ran.code, ran.out, ran.err) == (7, "", f"error: pyarrow is not installed\n{hint}")


def test_find_and_embed(mf: Mf, path: Path, tmp_path: Path) -> None:
    write(path, {"a": [ORANGE.read_bytes()], "b": [LEMON.read_bytes()]})
    assert mf("find", "lemon", path, "--column", "b", "-q").out == f"{path}/0\n"
    assert mf("embed", path, "--column", "a", "-o", tmp_path / "a.npz", "-q").code == 0

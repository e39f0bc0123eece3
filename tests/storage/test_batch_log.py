"""A log of batches gives back what was appended, and nothing that was torn."""

import errno
import fcntl
from pathlib import Path

import numpy as np
import pytest

from cryoforum.storage.batch_log import BatchLog, read_batches

ROWS, BATCH = 10, 4


def table(rows: range) -> dict[str, np.ndarray]:
    values = np.array(rows, dtype=np.float32)
    return {"a": values + 0.5, "b": -1 - values}


def batches(count: int) -> list[range]:
    return [range(start, min(start + BATCH, ROWS)) for start in range(0, ROWS, BATCH)][:count]


def write(path: Path, count: int, fingerprint: str = "f") -> None:
    with BatchLog(path, fingerprint, ROWS, BATCH) as log:
        for rows in batches(count):
            log.append(table(rows))


def rows_done(path: Path, fingerprint: str = "f") -> int:
    with BatchLog(path, fingerprint, ROWS, BATCH) as log:
        return log.rows_done


def test_what_was_appended_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 3)
    found = read_batches(path, "f", ROWS)
    assert list(found) == ["a", "b"]
    for name, values in table(range(ROWS)).items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values)
    assert rows_done(path) == ROWS


def test_a_log_cut_anywhere_keeps_its_whole_batches_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 3)
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    ends = [header + 16 * number + rows.stop * 8 for number, rows in enumerate(batches(3), 1)]
    assert ends[-1] == len(whole)
    kept = set()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with BatchLog(path, "f", ROWS, BATCH) as log:
            kept.add(log.rows_done)
            assert log.rows_done == sum(
                len(b) for b, end in zip(batches(3), ends, strict=True) if end <= length
            )
            for rows in batches(3):
                if rows.start >= log.rows_done:
                    log.append(table(rows))
        assert path.read_bytes() == whole
    assert kept == {0, 4, 8, 10}


def test_zeros_that_a_power_cut_leaves_are_no_batches(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 3)
    content = path.read_bytes()
    path.write_bytes(content[: -5 * 8] + bytes(5 * 8))
    assert rows_done(path) == 4
    write(path, 3)


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"[1]\n", b'{"format": 3}\n', b"data_\n" * 50])
def test_a_file_that_is_no_log_is_started_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert rows_done(path) == 0
    with pytest.raises(ValueError, match="found none"):
        read_batches(path, "f", ROWS)


def test_a_log_of_something_else_is_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 2)
    with pytest.raises(ValueError, match="same run"):
        read_batches(path, "g", ROWS)
    with pytest.raises(ValueError, match="expected 10 finished rows, found 8"):
        read_batches(path, "f", ROWS)
    assert rows_done(path, "g") == 0
    assert not path.exists()  # and without a batch of its own nothing is left


def test_only_one_writes(tmp_path: Path) -> None:
    with (
        BatchLog(tmp_path / "log", "f", ROWS, BATCH),
        pytest.raises(ValueError, match="another run is writing"),
    ):
        BatchLog(tmp_path / "log", "f", ROWS, BATCH)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on network file systems that know none."""

    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("done", [0, 1])
def test_without_locks_a_second_run_is_refused_before_it_writes(tmp_path: Path, done: int) -> None:
    """It began when the first had done so many batches; the first ends as if it were alone."""
    path, alone = tmp_path / "log", tmp_path / "alone"
    write(alone, 3)
    write(path, done)
    with BatchLog(path, "f", ROWS, BATCH) as first:
        with BatchLog(path, "f", ROWS, BATCH) as second:
            first.append(table(batches(3)[done]))
            with pytest.raises(ValueError, match="another run is writing"):
                second.append(table(batches(3)[done]))
        for rows in batches(3)[done + 1 :]:
            first.append(table(rows))
    assert path.read_bytes() == alone.read_bytes()


@pytest.mark.usefixtures("without_locks")
def test_a_log_that_another_run_removed_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with BatchLog(path, "f", ROWS, BATCH) as log:
        log.append(table(batches(1)[0]))
        path.unlink()
        write(path, 1, "g")
        with pytest.raises(ValueError, match="another run is writing"):
            log.append(table(batches(2)[1]))
    assert rows_done(path, "g") == BATCH


def test_blocks_count_by_their_number_wherever_they_lie(tmp_path: Path) -> None:
    """Written by two at once: a block that is there twice counts once, one that is out of turn does not."""
    path = tmp_path / "log"
    write(path, 3)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    size = 16 + 8 * BATCH
    header, first, second, last = (
        whole[:start],
        whole[start : start + size],
        whole[start + size : start + 2 * size],
        whole[start + 2 * size :],
    )
    path.write_bytes(header + first + first + second + first + last)
    found = read_batches(path, "f", ROWS)
    for name, values in table(range(ROWS)).items():
        np.testing.assert_array_equal(found[name], values)
    path.write_bytes(header + first + last + second)
    assert rows_done(path) == BATCH
    path.write_bytes(header + second + first)
    assert rows_done(path) == 0


@pytest.mark.parametrize("at", [3, 9, 13, 20])  # row number, row count, checksum, record
def test_a_block_with_a_changed_byte_is_none(tmp_path: Path, at: int) -> None:
    path = tmp_path / "log"
    write(path, 3)
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 1 + 16 + 8 * BATCH + at] ^= 1
    path.write_bytes(content)
    assert rows_done(path) == BATCH


def test_what_is_no_number_is_never_logged(tmp_path: Path) -> None:
    with BatchLog(tmp_path / "log", "f", ROWS, BATCH) as log:
        log.append(table(batches(1)[0]))
        spoiled = table(batches(2)[1])
        spoiled["b"][2] = np.nan
        with pytest.raises(ValueError, match="found nan for b of row 7"):
            log.append(spoiled)
        with pytest.raises(ValueError, match=r"expected columns \['a', 'b'\]"):
            log.append({"a": np.ones(4, dtype=np.float32)})
    assert rows_done(tmp_path / "log") == 4

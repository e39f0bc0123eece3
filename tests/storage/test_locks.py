"""Folders that one process holds at a time."""

import fcntl
import os
import socket
from pathlib import Path

import pytest
from helpers.children import held_by_another_process
from helpers.messages import logged

from cryoforum.storage.files import contents
from cryoforum.storage.locks import FOLDER_LOCK, taken


def test_a_folder_that_another_process_holds_is_refused_by_its_number_and_host(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with held_by_another_process(folder) as process:
        words = f"process {process} on {socket.gethostname()} is at work in {folder}; wait for it"
        with pytest.raises(ValueError, match=words), taken(folder):
            pass
        assert [path.name for path in folder.iterdir()] == [FOLDER_LOCK] and contents(folder) == []
    assert not folder.exists()
    with taken(folder):
        pass


def test_what_was_made_for_nothing_goes_and_what_is_filled_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), taken(tmp_path / "mine" / "a" / "b"):
        raise KeyboardInterrupt
    assert list((tmp_path / "mine").iterdir()) == []
    with taken(tmp_path / "mine"), taken(tmp_path / "link" / ".." / "mine") as again:
        assert again.folder == tmp_path / "mine"
        (tmp_path / "mine" / "result").touch()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["result"]
    with pytest.raises(ValueError, match="found a file"), taken(tmp_path / "mine" / "result"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / FOLDER_LOCK).write_text('{"process": 1, "host": "gone"}')
    with taken(tmp_path) as hold:
        hold.check()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_this_is_said_and_seen_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with logged("its file system has no locks"), taken(tmp_path) as hold:
        hold.check()
        (tmp_path / FOLDER_LOCK).write_text('{"process": 12, "host": "node7"}')
        with pytest.raises(ValueError, match="was taken from this process .* by process 12 on node7"):
            hold.check()
    assert (tmp_path / FOLDER_LOCK).exists()

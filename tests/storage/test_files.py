"""Leftovers of kills, told from what is somebody's own."""

from pathlib import Path

import pytest

from cryoforum.storage.files import is_torn, progress_path, remove_leftovers_in, replacing


def test_only_files_of_our_own_names_are_leftovers(tmp_path: Path) -> None:
    torn = []
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "map.v2.mrc") as temporary:
        torn.append(temporary)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "lock") as temporary:
        torn.append(temporary)
        raise KeyboardInterrupt
    progress = progress_path(tmp_path / "all.star", 0, 2)
    own = [".my.partial.notes", ".partial", "a.01234567.partial.star", ".progress-report", ".a.progress-x"]
    for path in (*torn, progress, *(tmp_path / name for name in own)):
        path.write_text("text")
    folder, link = tmp_path / ".folder.01234567.partial", tmp_path / ".link.01234567.partial"
    folder.mkdir()
    link.symlink_to(tmp_path / own[0])
    remove_leftovers_in(tmp_path, is_torn)
    assert sorted(tmp_path.iterdir()) == sorted([folder, link, progress, *(tmp_path / name for name in own)])
    remove_leftovers_in(tmp_path)
    assert not progress.exists() and folder.is_dir() and link.is_symlink()

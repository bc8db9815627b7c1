"""Outputs are whole or absent, whatever happens on the way."""

import os
import shutil
from pathlib import Path

import pytest

from ixc.io.files import remove_folder, replacing, replacing_folder, sweep


def test_what_takes_a_files_place_is_on_the_disk_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done: list[object] = []
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), done.append(os.fstat(file).st_size)))
    monkeypatch.setattr(os, "replace", lambda *paths: (move(*paths), done.append("moved")))
    with replacing(tmp_path / "a") as part:
        part.write_text("hello")
    with replacing_folder(tmp_path / "b") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "c").write_text("hi")
    with replacing(tmp_path / "d", durable=False) as part:
        part.write_text("one of many")
    assert done == [5, "moved", 2, "moved", "moved"]


@pytest.mark.parametrize("start", [True, False])
def test_a_kill_amid_a_removal_leaves_no_half_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bool
):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").touch()

    def killed(path: Path, **_: object) -> None:
        if start or path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(folder)
    assert (folder / "a").exists() == start
    assert folder.exists() == start
    remove_folder(folder)
    sweep(folder)
    assert not [*tmp_path.iterdir()]

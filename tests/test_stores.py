"""Where image tokens are kept: bounded, sound, and safe for several processes."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from ixc.engine.feature_stores import DiskStore, MemoryStore

KB = torch.zeros(256)
"""1024 bytes."""


def test_memory_is_bounded_and_loses_what_was_not_used_for_longest():
    store = MemoryStore(3 * 1024)
    for key in "abc":
        store.put(key, KB)
    assert store.get("a") is not None
    store.put("d", KB)
    assert [key for key in "abcd" if key in store] == ["a", "c", "d"]
    assert store.bytes == 3 * 1024


def test_what_is_larger_than_the_store_drives_nothing_out():
    store = MemoryStore(1024)
    store.put("a", KB)
    store.put("b", torch.zeros(257))
    assert "a" in store and "b" not in store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_disk_store_outlives_its_process(tmp_path: Path, dtype: torch.dtype):
    value = torch.randn(5, 7).to(dtype)
    DiskStore(tmp_path, 10**6).put("a", value)
    found = DiskStore(tmp_path, 10**6).get("a")
    assert found is not None and found.dtype == dtype and torch.equal(found, value)
    assert DiskStore(tmp_path, 10**6).get("b") is None


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other"])
def test_a_damaged_entry_counts_as_absent_and_can_be_written_again(tmp_path: Path, harm: str):
    store = DiskStore(tmp_path, 10**6)
    store.put("a", KB)
    whole = store.path("a").read_bytes()
    harmed = {"cut": whole[:-9], "flip": whole[:-1] + b"\x01", "empty": b"", "other": b"hello"}[
        harm
    ]
    store.path("a").write_bytes(harmed)
    assert store.get("a") is None
    store.put("a", KB)
    found = store.get("a")
    assert found is not None and torch.equal(found, KB)


def test_a_full_disk_store_keeps_what_it_has(tmp_path: Path):
    store = DiskStore(tmp_path, 3000)
    for key in "abc":
        store.put(key, KB)
    assert [key for key in "abc" if store.get(key) is not None] == ["a", "b"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3000
    DiskStore(tmp_path, 3000).put("d", KB)
    assert DiskStore(tmp_path, 3000).get("d") is None


def test_a_disk_without_room_ends_the_writing_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = DiskStore(tmp_path, 10**6)
    monkeypatch.setattr("ixc.engine.feature_stores.save_file", full)
    for key in "ab":
        store.put(key, KB)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.count("No space left on device") == 1


def _write(folder: Path, number: int) -> None:
    store = DiskStore(folder, 10**6)
    for i in range(20):
        store.put(f"{i}", torch.full((256,), float(i)))
        found = store.get(f"{i}")
        assert found is not None and found.eq(i).all(), (number, i)


def test_processes_that_write_the_same_entries_at_the_same_time_harm_nothing(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {f"{i}.safetensors" for i in range(20)}

"""The image once: through the tower, in memory, on disk, and never another encoder's tokens."""

import subprocess
from pathlib import Path

import pytest
import tiny
import torch

from ixc.data.media import BadMedia
from ixc.data.samples import Media, Sample
from ixc.engine.feature_stores import DiskStore
from ixc.engine.vision_cache import ImageRef, VisionCache
from ixc.models.ixc25 import IXCProcessor
from ixc.params import VisionCacheParams


@pytest.fixture
def shown(tmp_path: Path) -> list[Sample]:
    """Six questions about three images; the second has two tiles."""
    media = [
        tiny.image(tmp_path, c, size)
        for c, size in (("red", (28, 28)), ("blue", (56, 28)), ("green", (28, 28)))
    ]
    return [tiny.sample(f"{i}?", [media[i % 3]]) for i in range(6)]


def vision_cache(root: Path, **params: object) -> VisionCache:
    return VisionCache(tiny.reward(), tiny.processor(), root, VisionCacheParams(**params))  # pyright: ignore


def tokens(vision_cache: VisionCache, samples: list[Sample]) -> torch.Tensor:
    found = vision_cache.concat_features(samples)
    assert found is not None
    return found


def test_a_image_passes_the_tower_once_whoever_asks(tmp_path: Path, shown: list[Sample]):
    store = vision_cache(tmp_path)
    for _ in range(3):
        store.prepare(shown)
        store.load_ahead(shown)
        tokens(store, shown)
    assert store.num_encoded == 3


def test_images_of_a_batch_pass_the_tower_together(
    tmp_path: Path, shown: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    store, sizes = vision_cache(tmp_path), []
    encode = store.model.encode_images
    monkeypatch.setattr(store.model, "encode_images", lambda p: sizes.append(len(p)) or encode(p))
    tokens(store, shown)
    assert [size for size in sizes if size] == [3]


def test_no_more_tiles_pass_the_tower_than_memory_is_meant_for(
    tmp_path: Path, shown: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    wanted, store, sizes = tokens(vision_cache(tmp_path), shown), vision_cache(tmp_path), []
    encode = store.model.encode_images
    monkeypatch.setattr("ixc.engine.vision_cache.TILES_AT_ONCE", 5)  # of 2, 3 and 2
    monkeypatch.setattr(store.model, "encode_images", lambda p: sizes.append(len(p)) or encode(p))
    torch.testing.assert_close(tokens(store, shown), wanted)
    assert sizes == [2, 1]


@pytest.mark.parametrize("memory_gb", [0.0, 500e-9, 4.0])
def test_memory_bounds_what_is_kept_and_changes_no_token(
    tmp_path: Path, shown: list[Sample], memory_gb: float
):
    wanted = tokens(vision_cache(tmp_path), shown)
    store = vision_cache(tmp_path, memory_gb=memory_gb)
    store.prepare(shown)
    for sample, part in zip(
        shown, wanted.split([len(store.of([s])[0]) for s in shown]), strict=True
    ):
        torch.testing.assert_close(tokens(store, [sample]), part)
        assert store.memory.bytes <= memory_gb * 1e9


def test_where_memory_is_short_a_image_is_counted_without_the_tower(
    tmp_path: Path, shown: list[Sample]
):
    store, whole = vision_cache(tmp_path, memory_gb=0), vision_cache(tmp_path)
    store.prepare(shown)
    prompts = [store.prompt(sample) for sample in shown]
    assert store.num_encoded == 0
    tokens(whole, shown)
    assert prompts == [whole.prompt(sample) for sample in shown]


def test_what_cannot_be_kept_is_counted_by_its_header(
    tmp_path: Path, shown: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    store, whole = vision_cache(tmp_path, memory_gb=0), vision_cache(tmp_path)
    tokens(whole, shown)
    monkeypatch.delattr(IXCProcessor, "load")
    store.prepare(shown)
    assert store.sizes == whole.sizes


def test_what_the_disk_has_is_counted_without_being_read(
    tmp_path: Path, shown: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    first, second = (vision_cache(tmp_path, disk=str(tmp_path / "store")) for _ in range(2))
    tokens(first, shown)
    monkeypatch.delattr(IXCProcessor, "load")
    monkeypatch.delattr(DiskStore, "get")
    second.prepare(shown)
    assert second.sizes == first.sizes


@pytest.mark.parametrize("memory_gb", [0.0, 4.0])
def test_what_was_read_ahead_goes_with_the_last_row_that_it_was_read_for(
    tmp_path: Path, shown: list[Sample], memory_gb: float
):
    store = vision_cache(tmp_path, memory_gb=memory_gb)
    for _ in range(2):
        for rows in (shown[:4], shown[4:]):
            store.load_ahead(rows)
        assert len(store.waiting) == 3
        tokens(store, shown[:3])
        assert len(store.waiting) == 3
        tokens(store, shown[3:])
        assert not store.waiting and not store.uses


def test_a_image_that_cannot_be_read_ahead_leaves_nothing_of_its_row(
    tmp_path: Path, shown: list[Sample]
):
    gone = Media(kind="image", path="gone.png", sha256="0" * 64)
    store, media = vision_cache(tmp_path), [*(s.media[0] for s in shown[:3]), gone]
    with pytest.raises(BadMedia, match=r"gone\.png"):
        store.load_ahead([tiny.sample("Which?", media)])
    assert not store.waiting and not store.uses


@pytest.mark.parametrize("place", ["disk", "memory", "file"])
def test_a_step_finds_at_hand_what_was_read_ahead(
    tmp_path: Path, shown: list[Sample], monkeypatch: pytest.MonkeyPatch, place: str
):
    """Also when memory has lost it by then."""
    wanted = tokens(vision_cache(tmp_path, disk=str(tmp_path / "store")), shown)
    store = vision_cache(tmp_path, disk=str(tmp_path / "store") if place == "disk" else None)
    if place == "memory":
        store.prepare(shown)
    store.load_ahead(shown)
    store.memory.tensors.clear()
    monkeypatch.delattr(IXCProcessor, "load")
    monkeypatch.delattr(DiskStore, "get")
    assert torch.equal(tokens(store, shown), wanted)


def test_a_disk_store_spares_the_next_process_the_tower_and_says_its_size(
    tmp_path: Path, shown: list[Sample], capsys: pytest.CaptureFixture[str]
):
    disk = str(tmp_path / "store")
    first, second = (vision_cache(tmp_path, disk=disk) for _ in range(2))
    wanted = tokens(first, shown)
    second.prepare(shown)
    assert "new images" not in capsys.readouterr().err
    assert torch.equal(tokens(second, shown), wanted)
    assert (first.num_encoded, second.num_encoded) == (3, 0)
    vision_cache(tmp_path, disk=str(tmp_path / "another")).prepare(shown)
    assert "3 new images" in capsys.readouterr().err


def test_a_damaged_entry_is_computed_again(tmp_path: Path, shown: list[Sample]):
    wanted = tokens(vision_cache(tmp_path, disk=str(tmp_path / "store")), shown)
    damaged = sorted((tmp_path / "store").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-4])
    store = vision_cache(tmp_path, disk=str(tmp_path / "store"))
    assert torch.equal(tokens(store, shown), wanted)
    assert store.num_encoded == 1


def test_another_encoder_or_geometry_finds_nothing(tmp_path: Path, shown: list[Sample]):
    params = VisionCacheParams(disk=str(tmp_path / "store"))
    VisionCache(tiny.reward(), tiny.processor(), tmp_path, params).prepare(shown)
    finer = IXCProcessor(tiny.processor().tokenizer, tiny.TILE, tiny.PATCH, hd_num=1)
    for model, processor in ((tiny.causal(), tiny.processor()), (tiny.reward(), finer)):
        other = VisionCache(model, processor, tmp_path, params)
        other.prepare(shown)
        assert other.num_encoded == 3


def test_another_precision_finds_nothing(tmp_path: Path, shown: list[Sample]):
    """As when a training computes in bfloat16 with the weights, in fp32, that an evaluation reads."""
    wanted = tokens(vision_cache(tmp_path), shown)
    params = VisionCacheParams(disk=str(tmp_path / "store"))
    model = tiny.reward()
    model.compute_in_bf16()
    reduced = VisionCache(model, tiny.processor(), tmp_path, params)
    assert tokens(reduced, shown).dtype == reduced.dtype == torch.bfloat16
    exact = vision_cache(tmp_path, disk=str(tmp_path / "store"))
    assert torch.equal(tokens(exact, shown), wanted)
    assert exact.num_encoded == 3


def test_a_token_takes_what_it_takes_in_the_precision_it_has(tmp_path: Path, shown: list[Sample]):
    """Red has 5 tokens of 16 numbers: memory for all three images in bfloat16, 2 bytes, is not enough for fp32."""
    model = tiny.reward()
    model.compute_in_bf16()
    store = VisionCache(
        model, tiny.processor(), tmp_path, VisionCacheParams(memory_gb=(5 + 5 + 6) * 16 * 2 / 1e9)
    )
    store.prepare(shown)
    assert store.num_encoded == 3
    assert all(key in store.memory for key in store.sizes)


def test_a_store_full_of_another_encoders_tokens_says_what_to_delete(
    tmp_path: Path, shown: list[Sample], capsys: pytest.CaptureFixture[str]
):
    folder, gb = tmp_path / "the store", 1500e-9
    params = VisionCacheParams(disk=str(folder), disk_gb=gb)
    VisionCache(tiny.causal(), tiny.processor(), tmp_path, params).prepare(shown)
    kept = {*folder.iterdir()}
    capsys.readouterr()
    store = VisionCache(tiny.reward(), tiny.processor(), tmp_path, params)
    store.prepare(shown)
    told = capsys.readouterr().err
    assert kept == {*folder.iterdir()}
    [command] = [
        line.partition("any more: ")[2] for line in told.splitlines() if "another encoder's" in line
    ]
    (folder / f"own{store.suffix}.safetensors").touch()
    subprocess.run(command, shell=True, check=True)
    assert [path.name for path in folder.iterdir()] == [f"own{store.suffix}.safetensors"]


def test_a_video_and_a_image_of_the_same_bytes_are_two(tmp_path: Path, shown: list[Sample]):
    store, media = vision_cache(tmp_path), shown[0].media[0]
    video = Media(kind="video", path=media.path, sha256=media.sha256)
    assert store.key(ImageRef(video, 4)) != store.key(ImageRef(media, 4))


def test_a_image_among_several_has_the_tiles_that_the_processor_gives_it(
    tmp_path: Path, shown: list[Sample]
):
    options = {"hd_num": 4, "hd_num_several": 1}
    processor = IXCProcessor(tiny.processor().tokenizer, tiny.TILE, tiny.PATCH, **options)
    store, wide = VisionCache(tiny.reward(), processor, tmp_path), shown[1].media[0]
    several = tiny.sample(
        "Image1 <ImageHere>; Image2 <ImageHere> Which?", [wide, shown[0].media[0]]
    )
    alone, beside = store.of([shown[1]])[0], store.of([several])[0]
    assert len(alone) > len(beside)
    assert store.prompt(several).ids.count(processor.ids["image"]) == sum(
        map(len, store.of([several]))
    )

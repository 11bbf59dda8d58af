"""Slides: exact regions at any scale, and every way a file can be wrong."""

import concurrent.futures
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
from commands import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from bach.core.errors import InputError
from bach.slides import Slide, _downsample
from bach.toy.aperio import write_slide


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (40, 52, 3), np.uint8)
    return cv2.resize(small, (832, 640), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def path(pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "one.svs"
    write_slide(path, pixels, mpp=0.467)
    return path


def exact_area_mean(pixels, x, y, width, height, factor):
    """Area averaging by one weight per pixel of the slide and of the result; white outside."""

    def weights(start, count, length):
        first = start + factor * np.arange(count)[:, None]
        edges = np.arange(length)
        overlap = np.minimum(edges + 1, first + factor) - np.maximum(edges, first)
        return np.clip(overlap, 0, None) / factor

    down, across = weights(y, height, len(pixels)), weights(x, width, pixels.shape[1])
    rows, cols = down.any(axis=0), across.any(axis=0)
    inside = pixels[rows][:, cols].astype(np.float64) - 255  # so that what is beyond is white
    tall = np.tensordot(down[:, rows], inside, 1)
    return np.tensordot(across[:, cols], tall, (1, 1)).transpose(1, 0, 2) + 255


def _scratch(path, copy):
    """Copy a slide with zeros in the last tile of its first level."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tile = tiff.pages[0].dataoffsets[-1]
    data[tile : tile + 1000] = bytes(1000)
    copy.write_bytes(data)


def test_a_slide_tells_its_size_and_scale(path):
    with Slide(path) as slide:
        assert (slide.width, slide.height) == (832, 640)
        assert slide.mpp == pytest.approx(0.467)
        assert slide.name == "one"


def test_level_0_regions_are_the_pixels_themselves(path, pixels):
    with Slide(path) as slide:
        assert np.array_equal(slide.read(100, 200, 64, 48), pixels[200:248, 100:164])


@pytest.mark.parametrize(("x", "y"), [(100, 200), (100.5, 200.25), (-7.3, -4.1), (811.2, 629.9)])
@pytest.mark.parametrize("factor", [1.7, 2.0])
def test_shrinking_is_exact_area_averaging_at_fractional_places(path, pixels, x, y, factor):
    with Slide(path) as slide:
        seen = slide.read(x, y, 9, 7, mpp=0.467 * factor)
    expected = exact_area_mean(pixels, x, y, 9, 7, factor)
    assert np.abs(seen - expected).max() <= 0.51


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A slide of noise whose levels divide evenly, and the pixels of each level."""
    level = np.random.default_rng(1).integers(0, 256, (800, 1040, 3), np.uint8)
    path = tmp_path_factory.mktemp("noise") / "noise.svs"
    write_slide(path, level, mpp=0.5)
    levels = {1: level}
    for factor in (4, 16):
        level = cv2.resize(level, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        levels[factor] = level
    return path, levels


def random_regions(seed, count):
    """x, y, width, height, level-0 px per px: of all scales, near and beyond edges."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        factor = float(np.exp(rng.uniform(0, np.log(40))))
        if rng.random() < 0.3:
            factor = float(rng.choice([1, 1.5, 2, 4, 4.5, 8, 16, 20]))
        width, height = rng.integers(1, 300, 2).tolist()
        x, y = rng.uniform(-150, 1100), rng.uniform(-150, 850)
        if rng.random() < 0.3:
            x, y = round(x / 16) * 16, round(y / 16) * 16
        yield x, y, width, height, factor


@pytest.mark.parametrize("kept", [96 << 20, 300_000])
def test_every_region_is_the_exact_mean_of_its_level_whatever_was_read_before(
    noise, monkeypatch, kept
):
    monkeypatch.setattr("bach.slides._KEPT_BYTES", kept)
    path, levels = noise
    with Slide(path) as slide:
        for x, y, width, height, factor in random_regions(kept, 100):
            seen = slide.read(x, y, width, height, mpp=0.5 * factor)
            level = max(down for down in levels if down <= factor * 1.001)
            args = x / level, y / level, width, height, factor / level
            expected = exact_area_mean(levels[level], *args)
            assert np.abs(seen - expected).max() <= 0.51, args


def test_threads_that_read_one_slide_see_what_one_alone_sees(noise, monkeypatch):
    monkeypatch.setattr("bach.slides._KEPT_BYTES", 1_000_000)  # blocks come and go
    regions = list(random_regions(3, 120))

    def read(region):
        *place, factor = region
        return slide.read(*place, mpp=0.5 * factor)

    with Slide(noise[0]) as slide:
        alone = [read(region) for region in regions]
    with Slide(noise[0]) as slide, concurrent.futures.ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(read, regions * 2), strict=False):
            assert np.array_equal(one, other)


def test_what_is_read_may_be_written_to(noise):
    with Slide(noise[0]) as slide:
        before = slide.read(0, 0, 256, 256)
        slide.read(0, 0, 256, 256)[:] = 0
        assert np.array_equal(slide.read(0, 0, 256, 256), before)


def test_a_pyramid_level_gives_what_level_0_gives(path, pixels):
    with Slide(path) as slide:
        seen = slide.read(40.0, 80.0, 20, 30, mpp=0.467 * 8)  # from the level of factor 4
    expected = exact_area_mean(pixels, 40.0, 80.0, 20, 30, 8)
    assert np.abs(seen - expected).max() <= 1.1  # the level itself was rounded


def test_beyond_the_edge_a_slide_is_white(path):
    with Slide(path) as slide:
        assert (slide.read(-500, -500, 50, 50) == 255).all()
        assert (slide.read(832, 0, 10, 10, mpp=2.0) == 255).all()


def test_enlarging_a_smooth_picture_keeps_its_places(tmp_path):
    ramp = np.repeat(np.arange(0, 256, 4, np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    write_slide(tmp_path / "ramp.svs", np.ascontiguousarray(ramp))
    with Slide(tmp_path / "ramp.svs") as slide:
        seen = slide.read(10, 10, 20, 20, mpp=0.467 / 2)[0, :, 0].astype(float)
    expected = (10 + (np.arange(20) + 0.5) / 2 - 0.5) * 4
    assert np.abs(seen - expected).max() <= 0.51


def test_large_regions_are_read_in_blocks_that_leave_no_seam(path, monkeypatch):
    with Slide(path) as slide:
        whole = slide.read(3.3, 1.7, 200, 150, mpp=1.1)
        monkeypatch.setattr("bach.slides._PIECE_PIXELS", 5000)
        blocks = slide.read(3.3, 1.7, 200, 150, mpp=1.1)
    assert np.abs(whole.astype(int) - blocks).max() <= 1


def test_the_thumbnail_covers_the_whole_slide(path):
    with Slide(path) as slide:
        assert slide.thumbnail(0.467 * 16).shape == (40, 52, 3)
        assert slide.thumbnail(0.467 * 15).shape == (43, 56, 3)


def test_a_level_whose_size_was_cut_off_has_a_whole_downsample(tmp_path):
    pixels = np.full((643, 1027, 3), 200, np.uint8)
    pixels[640:, :] = 0
    write_slide(tmp_path / "odd.svs", pixels)
    with Slide(tmp_path / "odd.svs") as slide:
        assert slide._downsamples == [(1.0, 1.0), (4.0, 4.0), (16.0, 16.0)]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_photos_open_as_slides_with_a_given_scale(tmp_path, pixels, suffix):
    path = tmp_path / f"photo{suffix}"
    cv2.imwrite(str(path), pixels[..., ::-1])
    with Slide(path, mpp=0.42) as slide:
        assert (slide.width, slide.height, slide.mpp) == (832, 640, 0.42)
        difference = np.abs(slide.read(0, 0, 832, 640).astype(int) - pixels)
        assert difference.max() == 0 or suffix == ".jpg"
        assert difference.mean() < 3


def test_a_slide_without_scale_is_refused_with_the_remedy_and_runs_with_mpp(tmp_path, pixels):
    write_slide(tmp_path / "none.svs", pixels, mpp=None)
    with pytest.raises(InputError, match=r"no usable scale[\s\S]*--mpp"):
        Slide(tmp_path / "none.svs")
    with Slide(tmp_path / "none.svs", mpp=0.5) as slide:
        assert slide.mpp == 0.5


def test_properties_whose_names_are_no_utf_8_are_passed_over(tmp_path, path):
    file, content = tmp_path / "latin.svs", path.read_bytes()
    assert b"AppMag = 20" in content
    file.write_bytes(content.replace(b"AppMag = 20", b"\xb5m px = 1.0"))
    with Slide(file) as slide:
        assert slide.mpp == pytest.approx(0.467)
        assert "aperio.MPP" in slide.properties


def test_an_impossible_scale_is_not_believed(tmp_path, pixels):
    tifffile.imwrite(
        tmp_path / "dpi.tif", pixels, tile=(256, 256), resolution=(72, 72), resolutionunit="INCH"
    )
    with pytest.raises(InputError, match=r"352.* um/px"):
        Slide(tmp_path / "dpi.tif")
    with pytest.raises(InputError, match=r"between 0\.05 and 5"):
        Slide(tmp_path / "dpi.tif", mpp=467)


def test_the_tiff_resolution_is_used_where_it_is_plausible(tmp_path, pixels):
    per_cm = 1e4 / 0.5
    tifffile.imwrite(
        tmp_path / "cm.tif",
        pixels,
        tile=(256, 256),
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
    )
    with Slide(tmp_path / "cm.tif") as slide:
        assert slide.mpp == pytest.approx(0.5, rel=1e-4)


def test_what_is_no_slide_is_called_unreadable(tmp_path):
    (tmp_path / "broken.svs").write_bytes(b"this is no TIFF" * 60)
    with pytest.raises(InputError, match=r"broken.svs must be a readable picture[\s\S]*900 bytes"):
        Slide(tmp_path / "broken.svs")
    with pytest.raises(InputError, match="No such slide"):
        Slide(tmp_path / "absent.svs")


def test_a_truncated_slide_is_called_damaged(tmp_path, path):
    data = path.read_bytes()
    (tmp_path / "cut.svs").write_bytes(data[: len(data) * 2 // 3])
    with (
        pytest.raises(InputError, match=r"damaged|truncated"),
        Slide(tmp_path / "cut.svs") as slide,
    ):
        slide.check()


def test_damage_in_one_block_of_a_large_region_is_reported(tmp_path, path, monkeypatch):
    _scratch(path, tmp_path / "scratched.svs")
    monkeypatch.setattr("bach.slides._PIECE_PIXELS", 5000)
    with (
        pytest.raises(InputError, match=r"scratched.svs cannot be read everywhere"),
        Slide(tmp_path / "scratched.svs") as slide,
    ):
        slide.read(0, 0, 832, 640)


def test_damage_ends_every_thread_that_waits_for_the_same_block(tmp_path, path):
    _scratch(path, tmp_path / "scratched.svs")
    with (
        Slide(tmp_path / "scratched.svs") as slide,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(slide.read, 700, 500, 100, 100) for _ in range(24)]
        for future in waiting:
            with pytest.raises(InputError, match="cannot be read everywhere"):
                future.result(timeout=60)


def test_reading_a_closed_slide_is_an_error(path):
    slide = Slide(path)
    slide.close()
    with pytest.raises(ValueError, match="closed"):
        slide.read(0, 0, 4, 4)


@pytest.mark.parametrize(
    ("tile", "width", "height"), [(128, 256, 256), (240, 240, 240), (1024, 1024, 1024)]
)
def test_no_tile_of_a_slide_is_read_in_parts(tmp_path, pixels, tile, width, height):
    tiff_slide(tmp_path / "tiled.tif", np.tile(pixels, (2, 2, 1)), tile=(tile - tile % 16,) * 2)
    read = []
    with Slide(tmp_path / "tiled.tif") as slide:
        slide._blocks._read = lambda box: read.append(box) or slide._read_file(box)
        slide.read(0, 0, 1100, 1100)
    assert {(box.left % width, box.top % height) for box in read} == {(0, 0)}


# What a file claims


def tiff_slide(path, pixels, **more):
    """A tiled TIFF as OpenSlide reads it, 0.5 um/px."""
    tags = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
    scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, **{**tags, **scale, **more})


def set_tag(path, code, values):
    """Overwrite a tag of the first page by LONG values, in place."""
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages.first.tags[code]
        offset, where = tag.offset, tag.valueoffset
    data = bytearray(path.read_bytes())
    if len(values) == 1:
        data[offset : offset + 12] = struct.pack("<HHII", code, 4, 1, values[0])
    else:
        data[where : where + 4 * len(values)] = struct.pack(f"<{len(values)}I", *values)
    path.write_bytes(data)


def test_a_slide_that_claims_tiles_too_large_for_any_memory_is_refused(tmp_path, pixels):
    path = tmp_path / "huge.tif"
    tiff_slide(path, pixels)
    for code in (322, 323):
        set_tag(path, code, [524288])
    # In a process of its own, which would end with it.
    code = "import sys; from bach.slides import Slide; Slide(sys.argv[1]).thumbnail(8)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "tiles of 524,288x524,288 px on level 0" in done.stderr


@pytest.mark.parametrize("channels", [1, 3])
def test_a_slide_of_16_bits_is_refused_however_many_of_them_are_used(tmp_path, pixels, channels):
    deep = pixels[..., :channels].squeeze().astype(np.uint16) * 16
    kind = "rgb" if channels == 3 else "minisblack"
    tiff_slide(tmp_path / "deep.tif", deep, photometric=kind)
    with pytest.raises(InputError, match=r"deep.tif must be in RGB of 8 bits[\s\S]*16 bits"):
        Slide(tmp_path / "deep.tif")


def test_a_slide_of_five_channels_is_refused(tmp_path, pixels):
    tiff_slide(tmp_path / "five.tif", np.dstack([pixels, pixels[..., :2]]))
    with pytest.raises(InputError, match="5 channels"):
        Slide(tmp_path / "five.tif")


def test_channel_planes_of_rgb_are_read_as_rgb(tmp_path, pixels):
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    tiff_slide(tmp_path / "planes.tif", planes, planarconfig="separate")
    with Slide(tmp_path / "planes.tif") as slide:
        assert np.array_equal(slide.read(0, 0, 832, 640), pixels)


def test_the_share_of_tiles_without_data_is_known(tmp_path, pixels):
    path = tmp_path / "holes.tif"
    tiff_slide(path, pixels)
    with Slide(path) as slide:
        assert slide.missing_tiles() == 0
    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages.first.databytecounts)
    lost = [0 if n % 5 == 0 else count for n, count in enumerate(counts)]
    set_tag(path, 325, lost)
    with Slide(path) as slide:
        assert slide.missing_tiles() == pytest.approx(lost.count(0) / len(lost))
        assert (slide.read(0, 0, 100, 100) == 255).all()


def test_a_glance_shows_the_whole_slide_whatever_its_size(tmp_path, path):
    with Slide(path) as slide:
        assert slide.glance().shape == (40, 52, 3)  # the smallest level
    large = np.full((4200, 4300, 3), 240, np.uint8)
    large[2100:] = 90
    tiff_slide(tmp_path / "flat.tif", large)
    with Slide(tmp_path / "flat.tif") as slide:
        glance = slide.glance()
    assert glance.shape == (1024, 1024, 3)
    assert (glance[:512] == 240).all()
    assert (glance[512:] == 90).all()


def test_after_a_damaged_slide_a_good_one_is_read(tmp_path, path):
    _scratch(path, tmp_path / "bad.svs")
    with Slide(tmp_path / "bad.svs") as bad, Slide(path) as good:
        for _ in range(3):
            with pytest.raises(InputError, match="cannot be read everywhere"):
                bad.read(0, 0, 832, 640)
            assert good.read(0, 0, 832, 640).shape == (640, 832, 3)


# Pyramids


def test_a_pyramid_of_uneven_factors_does_not_drift_at_the_far_corner(tmp_path):
    pixels = np.full((600, 40000, 3), 240, np.uint8)
    pixels[500:560, 39800:39900] = 20
    small = cv2.resize(pixels, (9930, 150), interpolation=cv2.INTER_AREA)  # 4.028 across, 4 down
    with tifffile.TiffWriter(tmp_path / "uneven.tif") as tiff:
        how = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
        tiff.write(pixels, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", **how)
        tiff.write(small, subfiletype=1, **how)
    with Slide(tmp_path / "uneven.tif") as slide:
        assert len(slide._downsamples) == 2
        seen = 240 - slide.read(39000, 0, 100, 60, mpp=0.5 * 10)[..., 0].astype(float)
    x = (seen.sum(axis=0) @ (np.arange(100) + 0.5)) / seen.sum() * 10 + 39000
    y = (seen.sum(axis=1) @ (np.arange(60) + 0.5)) / seen.sum() * 10
    assert x == pytest.approx(39850, abs=1.5)
    assert y == pytest.approx(530, abs=1.5)


@given(
    size=st.tuples(st.integers(20_000, 200_000), st.integers(20_000, 200_000)),
    factor=st.sampled_from([2, 4, 8, 16, 32, 64]),
    up=st.booleans(),
)
@settings(deadline=None)
def test_a_level_that_was_cut_off_or_rounded_up_has_the_factor_it_was_made_by(size, factor, up):
    level = tuple(-(-side // factor) if up else side // factor for side in size)
    assert _downsample(size, level) == (factor, factor)


@given(
    size=st.tuples(st.integers(2000, 200_000), st.integers(2000, 200_000)),
    level=st.tuples(st.integers(60, 1900), st.integers(60, 1900)),
)
@settings(deadline=None)
def test_the_far_corner_of_every_level_lies_within_a_pixel_of_the_slides(size, level):
    for side, factor in enumerate(_downsample(size, level)):
        assert abs(level[side] * factor - size[side]) <= factor * 1.01

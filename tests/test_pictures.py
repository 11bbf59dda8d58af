"""Pictures: what is read from every kind of file, and drawings of which nothing is cut off."""

import concurrent.futures
import contextlib
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bach.classes import COLORS
from bach.core.errors import InputError
from bach.core.pictures import (
    read_header,
    read_indexed,
    read_mask,
    read_rgb,
    remarks,
    write_gray,
    write_indexed,
    write_png,
)

REMEDY = "Write it again."


# Files


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_is_read_as_it_was_written(tmp_path, suffix):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / f"one{suffix}"
    Image.fromarray(rgb).save(path)
    assert np.array_equal(read_rgb(path, REMEDY), rgb)
    assert read_header(path, REMEDY) == (7, 5, "RGB")


def test_gray_and_palettes_become_red_green_and_blue(tmp_path):
    gray = np.array([[0, 7, 255]], np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert (read_rgb(tmp_path / "gray.png", REMEDY) == gray[..., None]).all()
    write_indexed(tmp_path / "palette.png", np.array([[0, 1]], np.uint8), COLORS)
    assert read_rgb(tmp_path / "palette.png", REMEDY).tolist() == [[*map(list, COLORS[:2])]]


def test_what_is_transparent_is_white_in_every_way_a_file_can_say_it(tmp_path):
    red = Image.new("RGB", (2, 1), (200, 0, 0))
    red.putpixel((1, 0), (0, 100, 0))
    keyed, palette = tmp_path / "key.png", tmp_path / "palette.png"
    red.save(keyed, transparency=(0, 100, 0))
    red.quantize(2).save(palette, transparency=bytes([255, 255]))
    rgba = red.convert("RGBA")
    rgba.putpixel((1, 0), (0, 100, 0, 0))
    rgba.save(tmp_path / "rgba.png")
    rgba.save(tmp_path / "rgba.tif")
    index = red.quantize(2).getpixel((1, 0))
    red.quantize(2).save(palette, transparency=index)
    for name in ("key.png", "palette.png", "rgba.png", "rgba.tif"):
        assert read_rgb(tmp_path / name, REMEDY).tolist() == [[[200, 0, 0], [255, 255, 255]]], name
    gray = Image.fromarray(np.array([[[10, 255], [10, 51], [10, 0]]], np.uint8), "LA")
    gray.save(tmp_path / "gray.png")
    assert read_rgb(tmp_path / "gray.png", REMEDY)[0, :, 0].tolist() == [10, 206, 255]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_more_than_8_bits_are_refused_also_where_pillow_says_rgb(tmp_path, suffix, channels):
    shape = (6, 5) if channels == 1 else (6, 5, channels)
    deep = np.random.default_rng(0).integers(0, 4096, shape, np.uint16)
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), deep)
    with pytest.raises(InputError, match=r"deep[\s\S]*(16 bits|mode I;16)[\s\S]*Write it again"):
        read_rgb(path, REMEDY)
    if channels == 1:
        assert np.array_equal(read_indexed(path, REMEDY), deep)
    else:
        with pytest.raises(InputError, match="16 bits"):
            read_mask(path, REMEDY)


def test_inks_of_a_printer_are_refused(tmp_path):
    for suffix in (".jpg", ".tif"):
        path = tmp_path / f"inks{suffix}"
        Image.new("CMYK", (4, 4), (0, 90, 30, 10)).save(path)
        with pytest.raises(InputError, match="in mode CMYK"):
            read_rgb(path, REMEDY)


def test_of_several_pictures_the_largest_is_read_and_the_log_says_so(tmp_path, caplog):
    sizes = ((3, 2), (9, 6), (9, 6), (6, 4))
    pages = [Image.new("RGB", size, (50 * i, 0, 0)) for i, size in enumerate(sizes)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert read_header(tmp_path / "pages.tif", REMEDY) == (9, 6, "RGB")
    assert not caplog.records
    rgb = read_rgb(tmp_path / "pages.tif", REMEDY)
    assert rgb.shape == (6, 9, 3)
    assert (rgb == (50, 0, 0)).all()
    assert "pages.tif holds 4 pictures; number 2 is read, 9x6 px" in caplog.text
    assert "holds 4 pictures" in remarks(tmp_path / "pages.tif", REMEDY)[0]
    for suffix in (".png", ".gif", ".webp"):
        path = tmp_path / f"moves{suffix}"
        pages[1].save(path, save_all=True, append_images=[Image.new("RGB", (9, 6), "blue")])
        assert np.abs(read_rgb(path, REMEDY).astype(int) - (50, 0, 0)).max() < 8
        assert f"moves{suffix} holds 2 pictures" in caplog.text


def test_a_damaged_second_page_does_not_spoil_the_first(tmp_path):
    pages = [Image.new("RGB", (9, 6), "red"), Image.new("RGB", (9, 6))]
    pages[0].save(tmp_path / "one.tif")
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    whole = (tmp_path / "two.tif").read_bytes()
    for length in range(len((tmp_path / "one.tif").read_bytes()), len(whole) - 1, 17):
        (tmp_path / "cut.tif").write_bytes(whole[:length])
        assert (read_rgb(tmp_path / "cut.tif", REMEDY) == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_exif_says_and_so_does_its_size(tmp_path, suffix, orientation):
    rgb = np.zeros((16, 32, 3), np.uint8)
    rgb[:8, :16] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(rgb).save(path, exif=exif)
    seen = read_rgb(path, REMEDY)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(seen, expected)
    assert read_header(path, REMEDY)[:2] == seen.shape[1::-1]
    assert (seen.shape[0] > seen.shape[1]) == (orientation >= 5)


def test_what_is_written_with_a_palette_is_read_as_numbers(tmp_path):
    values = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)
    write_indexed(tmp_path / "map.png", values[:, ::-1], COLORS)
    assert np.array_equal(read_indexed(tmp_path / "map.png", REMEDY), values[:, ::-1])
    Image.fromarray(values.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    assert np.array_equal(read_indexed(tmp_path / "deep.png", REMEDY), values * np.uint16(300))


def test_a_file_that_is_no_such_picture_is_refused_by_name_and_with_the_remedy(tmp_path):
    whole = tmp_path / "whole.png"
    write_png(whole, np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png", "absent.png"):
        for read in (read_rgb, read_indexed):
            with pytest.raises(InputError, match=rf"{name} must be[\s\S]*{REMEDY}"):
                read(tmp_path / name, REMEDY)
    with pytest.raises(InputError, match=r"mode P, L, 1[\s\S]*in mode RGB"):
        read_indexed(whole, REMEDY)
    with pytest.raises(InputError, match=r"mode L\.\nReceived: a picture in mode RGB"):
        read_rgb(whole, REMEDY, modes=("L",))


def png_header(width, height):
    """The beginning of a PNG that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    chunks = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 10) + b"IDAT" + bytes(20)


def test_a_picture_too_large_to_decode_is_refused_by_our_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    write_png(tmp_path / "large.png", np.zeros((7, 7, 3), np.uint8))
    assert read_rgb(tmp_path / "large.png", REMEDY).shape == (7, 7, 3)
    with pytest.raises(InputError, match=r"large.png must have at most[\s\S]*7x7 px"):
        read_rgb(tmp_path / "large.png", REMEDY, most=48)
    assert Image.MAX_IMAGE_PIXELS == 20
    (tmp_path / "bomb.png").write_bytes(png_header(100_000, 100_000))
    for read in (read_header, read_rgb, read_indexed, read_mask):
        with pytest.raises(InputError, match=r"bomb.png must be a whole picture"):
            read(tmp_path / "bomb.png", REMEDY)


def test_threads_that_read_side_by_side_leave_pillows_limit_as_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    write_png(tmp_path / "one.png", np.zeros((40, 40, 3), np.uint8))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_rgb(tmp_path / "one.png", REMEDY), range(64)))
    assert before == Image.MAX_IMAGE_PIXELS


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, kind in (("pipe.png", "a pipe"), ("folder.png", "a folder"), ("a\0b.png", "null")):
        for read in (read_header, read_rgb, read_indexed, read_mask):
            with pytest.raises(InputError, match=rf"must be a readable picture[\s\S]*{kind}"):
                read(tmp_path / name, REMEDY)
    with pytest.raises(InputError, match="device"):
        read_rgb("/dev/zero", REMEDY)


def test_programs_of_other_formats_are_not_run(tmp_path):
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match=r"script\.png must be a readable picture"):
        read_rgb(tmp_path / "script.png", REMEDY)


# Masks


def save_mask(path, mask, kind):
    """A mask as programs write it; the palette ones have a white ground."""
    values = mask.astype(np.uint8)
    if kind == "gray":
        image = Image.fromarray(values * 255)
    elif kind == "labels":
        image = Image.fromarray(values.astype(np.uint16))
    elif kind == "one bit":
        image = Image.fromarray(mask)
    elif kind == "colour":
        image = Image.fromarray(np.where(mask[..., None], (9, 0, 120), 0).astype(np.uint8))
    elif kind == "alpha":
        image = Image.fromarray(np.dstack([values * 0] * 3 + [values * 255]))
    elif kind == "white and alpha":
        image = Image.fromarray(np.dstack([values * 0 + 255] * 3 + [values * 255]))
    else:
        image = Image.fromarray(values)
        image.putpalette([255, 255, 255, *((0, 0, 0) if kind == "black" else (200, 0, 0))])
    image.save(path)


KINDS = ("gray", "labels", "one bit", "colour", "alpha", "white and alpha", "black", "red")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_read_by_value_of_whatever_kind_it_is(tmp_path, suffix, kind):
    mask = np.random.default_rng(0).random((23, 17)) < 0.3
    path = tmp_path / f"mask{suffix}"
    save_mask(path, mask, kind)
    assert np.array_equal(read_mask(path, REMEDY), mask)
    save_mask(path, np.zeros((4, 4), bool), kind)
    assert not read_mask(path, REMEDY).any()


def test_a_jpeg_is_no_mask(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "mask.jpg")
    with pytest.raises(InputError, match=r"mask.jpg must be a mask[\s\S]*JPEG"):
        read_mask(tmp_path / "mask.jpg", REMEDY)
    Image.new("RGB", (8, 8)).save(tmp_path / "mask.png", format="WEBP")
    Image.new("RGB", (8, 8)).save(tmp_path / "mask.tif", compression="jpeg")
    for name in ("mask.png", "mask.tif"):
        with pytest.raises(InputError, match=rf"{name} must be a mask[\s\S]*JPEG or WebP"):
            read_mask(tmp_path / name, REMEDY)


def test_a_mask_of_negative_numbers_does_not_say_what_is_tissue(tmp_path):
    numbers = np.where(np.tri(8) > 0, 1, -1).astype(np.int32)
    Image.fromarray(numbers).save(tmp_path / "mask.tif")
    with pytest.raises(InputError, match=r"numbers from 0 up[\s\S]*Received: -1"):
        read_mask(tmp_path / "mask.tif", REMEDY)
    Image.fromarray(np.maximum(numbers, 0)).save(tmp_path / "mask.tif")
    assert np.array_equal(read_mask(tmp_path / "mask.tif", REMEDY), np.tri(8) > 0)


def test_a_picture_of_five_channels_is_refused(tmp_path):
    channels = np.zeros((8, 8, 5), np.uint8)
    more = ["unspecified", "unspecified"]
    tifffile.imwrite(tmp_path / "five.tif", channels, photometric="rgb", extrasamples=more)
    with pytest.raises(InputError, match=r"three channels[\s\S]*Received: 5"):
        read_rgb(tmp_path / "five.tif", REMEDY)


# All kinds


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
    suffix=st.sampled_from([".png", ".tif"]),
    seed=st.integers(0, 99),
)
def test_every_size_and_mode_is_read_as_it_looks(tmp_path_factory, size, mode, suffix, seed):
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (*size[::-1], 4), np.uint8)
    path = tmp_path_factory.mktemp("any") / f"any{suffix}"
    Image.fromarray(rgba).convert(mode).save(path)
    share = np.asarray(Image.open(path).convert("RGBA"))
    alpha = share[..., 3:] / 255
    seen = read_rgb(path, REMEDY)
    assert np.abs(seen - (share[..., :3] * alpha + 255 * (1 - alpha))).max() <= 0.51
    assert read_header(path, REMEDY)[:2] == size == seen.shape[1::-1]


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), kind=st.sampled_from(KINDS))
def test_a_damaged_file_is_read_or_refused_but_never_a_surprise(
    tmp_path_factory, place, value, kind
):
    folder = tmp_path_factory.mktemp("damage")
    for suffix in (".png", ".tif"):
        path = folder / f"mask{suffix}"
        save_mask(path, np.eye(9, dtype=bool), kind)
        data = bytearray(path.read_bytes())
        data[place % len(data)] = value
        path.write_bytes(data)
        for read in (read_header, read_rgb, read_indexed, read_mask, remarks):
            with contextlib.suppress(InputError):
                read(path, REMEDY)


# Writing


def test_a_picture_is_written_in_rgb(tmp_path):
    write_png(tmp_path / "red.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert np.asarray(Image.open(tmp_path / "red.png"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("write", [write_png, write_gray])
def test_a_picture_that_cannot_be_encoded_is_refused_and_nothing_is_written(tmp_path, write):
    long = np.zeros((1, 1_000_001, 3)[: 3 if write is write_png else 2], np.uint8)
    with pytest.raises(InputError, match=r"long.png must be .* that PNG can hold"):
        write(tmp_path / "long.png", long)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_its_file_cannot_hold_is_refused_before_it_is_decoded(tmp_path):
    file = tmp_path / "map.png"
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(file)
    content = bytearray(file.read_bytes())
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    file.write_bytes(content)
    with pytest.raises(InputError, match="20000x20000 px by its header, more than a file"):
        read_indexed(file, "Write it again.")
    Image.new("1", (20_000, 5_000)).save(file, optimize=True)  # as small as a sound one can be
    assert read_indexed(file, "Write it again.").shape == (5_000, 20_000)

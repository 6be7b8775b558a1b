"""Pictures in class folders: only PNG and JPEG are opened, 16 bits keep their values, bombs are one line."""

import gzip
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fedfisher_jax.data import _arrays as npz
from fedfisher_jax.data import _idx as idx
from fedfisher_jax.data._pictures import decode

GREY = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)


def saved(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_postscript_named_png_starts_no_program(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text('#!/bin/sh\n[ "$1" = --version ] && echo 10.0 && exit\ntouch "$(dirname "$0")/CALLED"\n')
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    data = saved(Image.fromarray(np.zeros((32, 32, 3), np.uint8)), "EPS")
    (tmp_path / "x.png").write_bytes(data)
    for source in (tmp_path / "x.png", data):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            decode(source, (32, 32, 3), resize=False)
    assert not (folder / "CALLED").exists()


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM", "WEBP", "PDF", "ICO", "TGA", "SGI"])
def test_other_formats_are_not_opened(kind):
    try:
        data = saved(Image.fromarray(GREY), kind)
    except (KeyError, OSError):
        pytest.skip(f"PIL here writes no {kind}")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        decode(data, (32, 32, 1), resize=False)


def test_sixteen_bits_keep_their_values():
    data = saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decode(data, (32, 32, 1), resize=False)[..., 0], GREY)
    np.testing.assert_array_equal(decode(data, (32, 32, 3), resize=False), np.stack([GREY] * 3, -1))
    halves = decode(data, (16, 16, 1), resize=True)
    assert abs(halves.mean() - GREY.mean()) < 2
    np.testing.assert_array_equal(decode(saved(Image.fromarray(GREY), "PNG"), (32, 32, 1), resize=False)[..., 0], GREY)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, kind=0, depth=8, body=b"", extra=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize("side", [9_000, 10_000, 12_000, 20_000, 2**31 - 1])
def test_bombs_are_one_line(side, resize):
    with pytest.raises(ValueError, match="^an image .*pixels") as refused:
        decode(png(side, side), (32, 32, 3), resize=resize)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [0, 2, 3, 4, 6])
@pytest.mark.parametrize("depth", [1, 8, 16])
def test_damage_is_one_line(kind, depth):
    for data in (png(32, 32, kind, depth), png(32, 32, 99), b"", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            decode(data, (32, 32, 3), resize=False)
    try:  # PIL fills up what is cut off, or refuses it
        assert decode(png(32, 32, kind, depth, bytes(99)), (32, 32, 3), resize=False).shape == (32, 32, 3)
    except ValueError as error:
        assert "cannot be read as an image" in str(error)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))
    with pytest.raises(ValueError, match="cannot be read as an image"):
        decode(png(32, 32, kind, depth, extra=text), (32, 32, 3), resize=False)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="it is no file"):
        decode(tmp_path / "x.png", (32, 32, 3), resize=False)


def test_what_archives_unpack_to_has_a_cap(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)), y=np.zeros(1000))
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match="x, y: .* bytes when unpacked, the cap is 1000000"):
        npz.read_arrays(path, list, most_bytes=1_000_000)
    assert set(npz.read_arrays(path, lambda names: ["y"], most_bytes=1_000_000)) == {"y"}
    monkeypatch.setattr(idx, "MOST_BYTES", 1000)
    (tmp_path / "f.gz").write_bytes(gzip.compress(bytes(1001)))
    (tmp_path / "f").write_bytes(bytes(1001))
    for name in ("f.gz", "f"):
        with pytest.raises(ValueError, match="more than 1000 bytes"):
            idx._content(tmp_path / name)

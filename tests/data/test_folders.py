import numpy as np
import pytest
from PIL import Image

from fedfisher_jax.data import DataNotFoundError, load
from fedfisher_jax.data._specs import SPECS

CINIC = [f"class{i}" for i in range(10)]
TINY = [f"n{i:08d}" for i in range(200)]


def save(path, colour, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)


def cinic(root, parts, per_class=1):
    for offset, part in enumerate(parts):
        for label, name in enumerate(CINIC):
            for i in range(per_class):
                save(root / part / name / f"{i}.png", (20 * label, 10 * offset, i))


def tiny(root):
    for label, name in enumerate(TINY):
        save(root / "train" / name / "images" / f"{name}_0.JPEG", (label, label, label), side=64)
    (root / "test" / "images").mkdir(parents=True)  # the real set's test images have no labels
    for i in range(3):
        save(root / "val" / "images" / f"val_{i}.JPEG", (i, i, i), side=64)
    lines = [f"val_{i}.JPEG\t{TINY[10 * i + 5]}\t0\t0\t62\t62" for i in range(3)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")


def raw(data):
    return np.rint((data.train_x * SPECS[data.name].std + SPECS[data.name].mean) * 255)


@pytest.mark.parametrize("folder", ["", "CINIC-10", "cinic10"])
def test_cinic10(tmp_path, folder):
    cinic(tmp_path / folder, ["train", "valid", "test"], per_class=2)
    data = load("cinic10", data_dir=tmp_path)
    assert data.train_x.shape == (20, 32, 32, 3) and data.train_x.dtype == np.float32 and data.augment
    np.testing.assert_array_equal(data.train_y, np.repeat(np.arange(10), 2))
    np.testing.assert_array_equal(raw(data)[:, 0, 0], [(20 * y, 0, i) for y in range(10) for i in range(2)])
    test_green = np.rint((data.test_x[..., 1] * SPECS["cinic10"].std[1] + SPECS["cinic10"].mean[1]) * 255)
    assert (test_green == 20).all()  # test/, not valid/


def test_valid_is_the_test_set_where_there_is_no_test(tmp_path):
    cinic(tmp_path, ["train", "valid"])
    assert len(load("cinic10", data_dir=tmp_path).test_x) == 10


def test_tiny_imagenet_is_resized_and_tested_by_its_annotations(tmp_path):
    tiny(tmp_path / "tiny-imagenet-200")
    data = load("tiny_imagenet", data_dir=tmp_path)
    assert data.train_x.shape == (200, 32, 32, 3) and data.num_classes == 200 and not data.augment
    np.testing.assert_allclose(raw(data)[:, 5, 7, 1], np.arange(200), atol=2)  # JPEG rounds
    np.testing.assert_array_equal(data.test_y, [5, 15, 25])


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="put its images in cinic10/train/<class>/ and cinic10/test/<class>/"):
        load("cinic10", data_dir=tmp_path)
    cinic(tmp_path, ["train"])
    with pytest.raises(ValueError, match="has no labelled test images"):
        load("cinic10", data_dir=tmp_path)
    cinic(tmp_path, ["test"])
    save(tmp_path / "train" / CINIC[3] / "large.png", (0, 0, 0), side=33)
    with pytest.raises(ValueError, match="large.png has 33×33 pixels, expected 32×32"):
        load("cinic10", data_dir=tmp_path)
    (tmp_path / "train" / CINIC[3] / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    with pytest.raises(ValueError, match="large.png cannot be read as an image"):
        load("cinic10", data_dir=tmp_path)
    (tmp_path / "train" / "an eleventh class").mkdir()
    with pytest.raises(ValueError, match="must have 10 class folders, got 11"):
        load("cinic10", data_dir=tmp_path)


def test_truncated_images_and_empty_classes_are_refused(tmp_path):
    cinic(tmp_path, ["train", "test"])
    path = tmp_path / "train" / CINIC[0] / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="0.png cannot be read as an image"):
        load("cinic10", data_dir=tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="class0 has no .png or .jpg images"):
        load("cinic10", data_dir=tmp_path)


def test_unknown_class_in_the_annotations_is_refused(tmp_path):
    tiny(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99999999\t0\n")
    with pytest.raises(ValueError, match="val_annotations.txt line 1 names no class of train/"):
        load("tiny_imagenet", data_dir=tmp_path)

"""Files that can be read, and files that must be refused with a reason."""

import gzip
import logging

import nibabel
import numpy as np
import pytest
import SimpleITK

from glimpseg import volume as volumes
from glimpseg.data import nifti
from glimpseg.errors import InputError
from glimpseg.study import Frame
from glimpseg.volume import Volume


def ball(shape=(16, 16, 16)):
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    rng = np.random.default_rng(0)
    return np.where((place**2).sum(0) < 0.7, rng.uniform(50, 100, shape), 0).astype(np.float32)


def save(path, voxels, affine=None, header=None):
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine, header), path)
    return path


def test_an_image_is_read_as_it_was_written(tmp_path):
    volume = nifti.read_volume(save(tmp_path / "a.nii.gz", ball(), np.diag([1, 2, 3, 1])))
    assert np.array_equal(volume.voxels, ball())
    assert np.array_equal(volume.affine, np.diag([1.0, 2, 3, 1]))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.nii\.gz does not exist"):
        nifti.read_volume(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_gz_is_refused(tmp_path, share):
    path = save(tmp_path / "a.nii.gz", ball())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        nifti.read_volume(path)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_a_gz_is_noticed(tmp_path, seed):
    path = save(tmp_path / "a.nii.gz", ball())
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    content[int(rng.integers(400, len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    try:
        volume = nifti.read_volume(path)
    except InputError:
        return
    assert np.array_equal(volume.voxels, ball())  # the bit did not matter (padding of the gzip stream)


def test_a_text_file_called_nii_gz_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        nifti.read_volume(tmp_path / "a.nii.gz")


def test_another_format_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(InputError, match="not a NIfTI file"):
        nifti.read_volume(tmp_path / "a.dcm")


@pytest.mark.parametrize("shape", [(8, 8, 8, 5), (8, 8), (8, 8, 8, 1, 3)])
def test_what_is_not_one_volume_is_refused(tmp_path, shape):
    with pytest.raises(InputError, match="three-dimensional"):
        nifti.read_volume(save(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape, np.float32)))


def test_a_fourth_axis_of_one_is_dropped_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "glimpseg"):
        volume = nifti.read_volume(save(tmp_path / "a.nii.gz", ball()[..., None]))
    assert volume.voxels.shape == (16, 16, 16)
    assert "single volume" in caplog.text


def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path):
    path = save(tmp_path / "a.nii", ball())
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="claims 32767x32767x32767"):
        nifti.read_volume(path)


def test_colours_are_refused(tmp_path):
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match="colours"):
        nifti.read_volume(save(tmp_path / "a.nii.gz", colours))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_voxels_in_the_background_become_background(tmp_path, caplog, value):
    voxels = ball()
    voxels[0, 0, :3] = value
    with caplog.at_level(logging.WARNING, "glimpseg"):
        volume = nifti.read_volume(save(tmp_path / "a.nii.gz", voxels))
    assert np.array_equal(volume.voxels, ball())
    assert "3 NaN or infinite" in caplog.text


def test_a_background_written_as_nan_is_background(tmp_path):
    voxels = np.where(ball() == 0, np.nan, ball()).astype(np.float32)
    assert np.array_equal(nifti.read_volume(save(tmp_path / "a.nii.gz", voxels)).voxels, ball())


def test_a_broken_voxel_inside_the_brain_is_refused(tmp_path):
    voxels = ball()
    voxels[8, 8, 8] = np.nan
    with pytest.raises(InputError, match="1 of them inside the brain"):
        nifti.read_volume(save(tmp_path / "a.nii.gz", voxels))


def test_widespread_broken_voxels_are_refused(tmp_path):
    voxels = ball()
    voxels[:5] = np.nan
    with pytest.raises(InputError, match="too many to be stray"):
        nifti.read_volume(save(tmp_path / "a.nii.gz", voxels))


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_an_image_of_one_value_is_refused(tmp_path, value):
    with pytest.raises(InputError, match=r"single value|no finite"):
        nifti.read_volume(save(tmp_path / "a.nii.gz", np.full((8, 8, 8), value, np.float32)))


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_singular_affine_is_refused(tmp_path, column):
    path = save(tmp_path / "a.nii", ball())
    content = bytearray(path.read_bytes())
    for row in range(3):
        start = 280 + 16 * row + 4 * column
        content[start : start + 4] = np.float32(0).tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="places no voxel"):
        nifti.read_volume(path)


def test_a_sform_is_preferred_to_a_qform_with_a_warning(tmp_path, caplog):
    image = nibabel.Nifti1Image(ball(), None)
    image.set_sform(np.diag([1, 1, 1, 1]), 1)
    image.set_qform(np.diag([2, 2, 2, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with caplog.at_level(logging.WARNING, "glimpseg"):
        volume = nifti.read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.affine, np.eye(4))
    assert "sform and qform differ" in caplog.text


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_every_number_format_gives_the_same_voxels(tmp_path, order, kind):
    voxels = np.round(ball()).astype(order + kind)
    header = nibabel.Nifti1Header(endianness=order)
    assert np.array_equal(nifti.read_volume(save(tmp_path / "a.nii", voxels, header=header)).voxels, np.round(ball()))


def test_scaled_integers_are_rescaled(tmp_path):
    image = nibabel.Nifti1Image(np.round(ball()).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "a.nii.gz")
    # nibabel keeps the integers as they are and writes how to read them.
    assert np.allclose(nifti.read_volume(tmp_path / "a.nii.gz").voxels, 0.5 * np.round(ball()) + 3)


def test_labels_are_written_unscaled(tmp_path):
    labels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4) % 5
    nifti.write_labels(tmp_path / "a.nii.gz", Volume(labels, np.eye(4)), {1: "NCR"})
    raw = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    start = int(np.frombuffer(raw[108:112], "<f4")[0])
    stored = np.frombuffer(raw[start:], np.uint8).reshape((4, 4, 4), order="F")
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))).T
    assert np.array_equal(stored, labels)
    assert np.array_equal(itk, labels)


def test_both_forms_of_a_written_header_agree(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    nifti.write_labels(tmp_path / "a.nii.gz", Volume(np.ones((3, 3, 3), np.uint8), affine))
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert np.allclose(image.get_qform(), affine, atol=1e-5)
    assert np.array_equal(image.affine, affine)


def test_a_label_outside_the_convention_is_named(tmp_path):
    from glimpseg.region import CONVENTIONS

    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = 7
    with pytest.raises(InputError, match=r"labels \[7\]"):
        nifti.read_labels(save(tmp_path / "a.nii.gz", labels), CONVENTIONS["brats2023"])


# Large files, part by part


@pytest.fixture
def small_parts(monkeypatch):
    """Files of a few hundred voxels are read in parts, as those of 34 million are."""
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 500)
    monkeypatch.setattr(volumes, "SLAB_VOXELS", 300)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["<i2", ">u2", "<f8", "u1"])
@pytest.mark.parametrize("slope", [1, 0.37])
def test_a_large_file_is_read_in_parts_to_the_same_voxels(tmp_path, small_parts, monkeypatch, suffix, kind, slope):
    image = nibabel.Nifti1Image(ball().astype(kind), np.eye(4))
    image.header.set_data_dtype(kind)
    image.header.set_slope_inter(slope, slope - 1)
    nibabel.save(image, tmp_path / f"a{suffix}")
    parts = nifti.read_volume(tmp_path / f"a{suffix}").voxels
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 10**9)
    assert np.array_equal(parts, nifti.read_volume(tmp_path / f"a{suffix}").voxels)
    assert np.array_equal(parts, np.asanyarray(nibabel.load(tmp_path / f"a{suffix}").dataobj).astype(np.float32))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_one_volume_of_a_large_series_is_read_in_parts(tmp_path, small_parts, suffix, number):
    series = np.random.default_rng(0).integers(1, 99, (12, 11, 10, 4)).astype(np.int16)
    path = save(tmp_path / f"a{suffix}", series)
    assert np.array_equal(nifti.read_volume(Frame(path, number)).voxels, series[..., number])


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_large_file_is_refused(tmp_path, small_parts, share):
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, ball())
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(InputError, match=r"a\.nii"):
            nifti.read_volume(path)


def test_a_large_file_that_goes_on_after_its_voxels_is_refused(tmp_path, small_parts):
    path = save(tmp_path / "a.nii.gz", ball())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(5000)))
    with pytest.raises(InputError, match="goes on after the last voxel"):
        nifti.read_volume(path)


def test_a_claimed_grid_is_that_of_the_header_without_a_word(tmp_path, caplog):
    image = nibabel.Nifti1Image(ball(), np.diag([1, 2, 3, 1]))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with caplog.at_level(logging.WARNING, "glimpseg"):
        grid = nifti.claimed_grid(tmp_path / "a.nii.gz")
    assert grid.shape == (16, 16, 16)
    assert not caplog.text
    nifti.read_header(tmp_path / "a.nii.gz")
    assert "orientation" in caplog.text

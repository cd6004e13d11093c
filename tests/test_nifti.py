"""Files that can be read, and files that must be refused with a reason."""

import gzip
import logging

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given
from hypothesis import strategies as st

from glimpseg import volume as volumes
from glimpseg.data import nifti
from glimpseg.data.notices import collected_warnings
from glimpseg.errors import InputError
from glimpseg.study import Frame
from glimpseg.volume import Volume, displacement_mm


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


# Names and headers that mislead


def edited(path, image, **fields):
    """Write an image, and set fields of its header to values that nibabel would not write."""
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for key, value in fields.items():
        if key == "dim":
            header["dim"][: len(value)] = value
        else:
            header[key] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


PLACED = np.array([[-1.0, 0, 0, 10], [0, -1.0, 0, 11], [0, 0, 2.0, -20], [0, 0, 0, 1]])


def read_with_warnings(path):
    with collected_warnings() as warnings:
        volume = nifti.read_volume(path)
    assert np.array_equal(volume.voxels, ball())
    assert np.abs(volume.affine - PLACED).max() < 1e-5
    assert displacement_mm(nifti.read_header(path), volume.grid) == 0
    assert nifti.claimed_grid(path).shape == volume.grid.shape
    return warnings


@pytest.mark.parametrize(("true", "told"), [(".nii", ".nii.gz"), (".nii.gz", ".nii"), (".nii.gz", ".NII")])
def test_a_file_is_compressed_or_not_by_its_content(tmp_path, true, told):
    nibabel.save(nibabel.Nifti1Image(ball(), PLACED), tmp_path / f"a{true}")
    (tmp_path / f"a{true}").rename(tmp_path / f"b{told}")
    (warning,) = read_with_warnings(tmp_path / f"b{told}")
    held = "not compressed" if true == ".nii" else "compressed"
    assert warning == f"b{told} is {held}, although its name ends otherwise; it is read by its content."


@pytest.mark.parametrize(("true", "told"), [(".nii", ".nii.gz"), (".nii.gz", ".nii")])
def test_a_file_of_another_name_is_checked_for_its_end(tmp_path, true, told):
    nibabel.save(nibabel.Nifti1Image(ball(), PLACED), tmp_path / f"a{true}")
    (tmp_path / f"b{told}").write_bytes((tmp_path / f"a{true}").read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged"):
        nifti.read_volume(tmp_path / f"b{told}")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize("suffixes", [(".hdr", ".img"), (".HDR", ".IMG"), (".hdr.gz", ".img.gz"), (".hdr", ".img.gz")])
def test_a_pair_is_read_by_either_of_its_files(tmp_path, kind, suffixes):
    nibabel.save(kind(ball(), PLACED), tmp_path / "p.img")
    for plain, suffix in zip((".hdr", ".img"), suffixes, strict=True):
        content = (tmp_path / f"p{plain}").read_bytes()
        (tmp_path / f"scan{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    for suffix in suffixes:
        assert read_with_warnings(tmp_path / f"scan{suffix}") == []


def test_a_pair_without_its_other_half_is_told_so(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(ball(), PLACED), tmp_path / "p.img")
    (tmp_path / "p.hdr").unlink()
    with pytest.raises(InputError, match=r"the header \(.hdr\) of the same name is not beside it"):
        nifti.read_volume(tmp_path / "p.img")


def test_analyze_is_refused_because_it_has_no_left(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(ball(), PLACED), tmp_path / "p.img")
    with pytest.raises(InputError, match="which does not say which side is left"):
        nifti.read_volume(tmp_path / "p.img")


@pytest.mark.parametrize(("code", "unit", "factor"), [(1, "metres", 1e-3), (3, "micrometres", 1e3)])
@pytest.mark.parametrize("form", ["sform", "qform", "none"])
def test_lengths_in_another_unit_become_millimetres(tmp_path, code, unit, factor, form):
    affine = PLACED.copy()
    affine[:3] *= factor
    image = nibabel.Nifti1Image(ball(), affine)
    image.set_sform(affine, code=int(form == "sform"))
    image.set_qform(affine, code=int(form == "qform"))
    path = edited(tmp_path / "a.nii", image, xyzt_units=code | 8)
    if form == "none":
        assert nifti.read_volume(path).grid.spacing_mm == pytest.approx((1, 1, 2))
        return
    (warning,) = read_with_warnings(path)
    assert warning.startswith(f"a.nii is in {unit} by its header (xyzt_units); it was converted to millimetres: voxels")


def test_a_unit_that_no_scan_can_have_is_not_believed(tmp_path):
    (warning,) = read_with_warnings(edited(tmp_path / "a.nii", nibabel.Nifti1Image(ball(), PLACED), xyzt_units=1))
    assert "would give voxels of 1000x1000x2000 mm; its numbers are taken as millimetres" in warning


def test_metres_that_are_not_declared_are_named_as_tiny_voxels(tmp_path):
    affine = PLACED.copy()
    affine[:3] *= 1e-3
    path = edited(tmp_path / "a.nii", nibabel.Nifti1Image(ball(), affine), xyzt_units=0)
    with pytest.raises(InputError, match=r"voxels of 0.001x0.001x0.002 mm.* its unit is not the millimetre"):
        nifti.read_volume(path)


@pytest.mark.parametrize(
    "dim", [[4, 16, 16, 16, 0, 0, 0, 0], [5, 16, 16, 16, 1, 0, 0, 0], [4, 16, 16, 16, -1, 1, 1, 1]]
)
def test_a_fourth_axis_of_nothing_is_one(tmp_path, dim):
    warnings = read_with_warnings(edited(tmp_path / "a.nii", nibabel.Nifti1Image(ball(), PLACED), dim=dim))
    assert any("which counts as 1" in warning for warning in warnings)


@given(excess=st.floats(0, 0.009), seed=st.integers(0, 2**32 - 1))
@example(excess=1e-6, seed=0)
def test_a_quaternion_that_is_too_long_is_read_as_itk_reads_it(tmp_path_factory, excess, seed):
    vector = np.random.default_rng(seed).normal(size=3)
    b, c, d = vector / np.linalg.norm(vector) * (1 + excess)
    path = tmp_path_factory.mktemp("quaternion") / "a.nii"
    edited(path, nibabel.Nifti1Image(ball(), PLACED), sform_code=0, qform_code=1, quatern_b=b, quatern_c=c, quatern_d=d)
    grid = nifti.read_volume(path).grid
    image = SimpleITK.ReadImage(str(path))
    expected = np.eye(4)
    expected[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    expected[:3, 3] = image.GetOrigin()
    assert displacement_mm(grid, type(grid)(grid.shape, np.diag([-1.0, -1, 1, 1]) @ expected)) < 0.03


def test_sform_and_qform_that_agree_by_rounding_give_no_warning(tmp_path):
    image = nibabel.Nifti1Image(ball(), PLACED)
    moved = PLACED.copy()
    moved[0, 3] += 0.2
    image.set_sform(PLACED, code=1)
    image.set_qform(moved, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_with_warnings(tmp_path / "a.nii") == []

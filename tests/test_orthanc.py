"""Round trip through a PACS (Orthanc): store a study, fetch it by DICOMweb, segment it, store and read back the SEG."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from glimpseg.cli import app
from glimpseg.modality import Modality
from glimpseg.region import Label
from glimpseg.volume import Volume

pytest.importorskip("highdicom", reason="needs the extra dicom")
pytest.importorskip("dicomweb_client", reason="needs dicomweb-client")
import dicomweb_client
import pydicom

import dicom_phantoms as phantoms
from conftest import needs_loopback
from glimpseg.data.dicom.find import find_series
from glimpseg.data.dicom.read import read_series
from glimpseg.data.dicom.seg import read_seg, write_seg
from glimpseg.data.dicom.sr import write_sr
from test_intake import SERIES, write_visit

PROGRAM = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STARTING_SECONDS = 60

pytestmark = [
    pytest.mark.skipif(not PROGRAM or not PLUGIN.exists(), reason="Orthanc with its DICOMweb plugin is not installed"),
    pytest.mark.slow,
    needs_loopback,
]

AFFINE = np.array([[1.0, 0, 0, -5], [0, 1.1, 0, -7], [0, 0, 3.0, -9], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 1000, (12, 14, 10)).astype(np.int16)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """Client of a PACS on the loopback address, for the tests of this module."""
    place = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Name": "test",
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StorageDirectory": str(place / "storage"),
        "IndexDirectory": str(place / "index"),
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (place / "orthanc.json").write_text(json.dumps(settings))
    with (place / "log").open("w") as log:
        server = subprocess.Popen([PROGRAM, place / "orthanc.json"], stdout=log, stderr=log, cwd=place)
    try:
        _wait(server, f"http://127.0.0.1:{port}/system", place / "log")
        yield dicomweb_client.DICOMwebClient(f"http://127.0.0.1:{port}/dicom-web")
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server, address, log):
    for _ in range(STARTING_SECONDS * 10):
        if server.poll() is not None:
            pytest.fail(f"Orthanc ended: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("Orthanc did not answer in time.")


def stow(pacs, *paths):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pacs.store_instances([pydicom.dcmread(path) for path in paths])


def fetch(pacs, folder, study):
    """Fetch every instance of a study under new file names."""
    folder.mkdir()
    for number, dataset in enumerate(pacs.retrieve_study(study)):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def threshold(volume):
    """Segment by thresholds instead of a network: bright is enhancing tumour, medium is oedema."""
    values = np.select([volume.voxels > 900, volume.voxels > 700], [Label.ET, Label.ED], 0)
    return Volume(values.astype(np.uint8), volume.affine)


@pytest.mark.parametrize("form", ["classic", "enhanced", "compressed"])
def test_a_study_goes_through_a_pacs_and_its_segmentation_comes_back(form, pacs, tmp_path):
    writer = phantoms.write_enhanced if form == "enhanced" else phantoms.write_series
    paths = writer(tmp_path / "scanner", VOXELS, AFFINE, plane="sagittal", study=form)
    if form == "compressed":
        if not phantoms.has_dcmtk():
            pytest.skip("dcmtk is not installed")
        phantoms.compress(paths, "jpeg-lossless")
    stow(pacs, *paths)
    study = phantoms.uid("PIDXX4711", form)

    (series,) = find_series(fetch(pacs, tmp_path / "fetched", study))
    image = read_series(series)
    assert np.array_equal(image.ras().voxels, VOXELS)
    labels = threshold(image)
    for kind in ("BINARY", "LABELMAP"):
        write_seg(tmp_path / f"{kind}.dcm", labels, series, kind=kind, model="threshold")
    write_sr(tmp_path / "sr.dcm", labels, tmp_path / "BINARY.dcm", series, model="threshold")
    stow(pacs, tmp_path / "BINARY.dcm", tmp_path / "LABELMAP.dcm", tmp_path / "sr.dcm")

    again = fetch(pacs, tmp_path / "again", study)
    (series,) = find_series(again)  # the same series: the stored objects are no MR images
    found = [path for path in again.iterdir() if pydicom.dcmread(path, stop_before_pixels=True).Modality == "SEG"]
    assert len(found) == 2
    for path in found:
        back = read_seg(path, labels.grid)
        assert back.voxels.tobytes() == labels.voxels.tobytes()
    assert len(series.files) == len(paths)
    stored = pacs.search_for_series(study)
    assert sorted(one["00080060"]["Value"][0] for one in stored) == ["MR", "SEG", "SEG", "SR"]


def test_the_command_segments_what_a_pacs_gave_and_the_pacs_keeps_it(pacs, model_folder, tmp_path):
    description, _ = SERIES[Modality.FLAIR]
    written = write_visit(tmp_path / "scanner", 0, [Modality.FLAIR])
    assert description in {pydicom.dcmread(path).SeriesDescription for path in (tmp_path / "scanner").iterdir()}
    stow(pacs, *(tmp_path / "scanner").iterdir())
    study = pydicom.dcmread(next((tmp_path / "scanner").iterdir())).StudyInstanceUID

    fetched = fetch(pacs, tmp_path / "fetched", study)
    types = "dicom-seg,dicom-sr"
    arguments = ["segment", "-i", fetched, "-m", model_folder, "-o", tmp_path / "out", "--output-type", types]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None, done.exception
    place = tmp_path / "out" / "fetched"
    stow(pacs, place / "seg.dcm", place / "measurements.dcm")

    again = fetch(pacs, tmp_path / "again", study)
    (path,) = [path for path in again.iterdir() if pydicom.dcmread(path, stop_before_pixels=True).Modality == "SEG"]
    mask = nibabel.load(place / "seg.nii.gz")
    labels = Volume(np.asarray(mask.dataobj).astype(np.uint8), mask.affine)
    assert labels.voxels.any()
    assert read_seg(path, labels.grid).voxels.tobytes() == labels.voxels.tobytes()
    assert labels.voxels.size == written[Modality.FLAIR].size

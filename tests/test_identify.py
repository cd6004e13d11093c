"""Identify sequences: by words and parameters, within a study, in an edited series.json, and by the voxels."""

import json
import os
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from glimpseg import phantom
from glimpseg.data.identify import appearance, identify, identify_series, judge_series, read_series_json, rules_with
from glimpseg.data.preprocess import Preprocess, prepare
from glimpseg.data.series import Series
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.phantom.dataset import as_study
from glimpseg.study import Study
from series_table import BRAVO, FILES, FLAIR2D, MPRAGE, NO_HEADER, SECOND, T1SE, T2TSE, VENDORS

FOLDER = Path("somewhere")


def series(description="", header=NO_HEADER, *, number=1, place="SeriesDescription", **fields):
    """A series with the words and numbers of a header."""
    words = {keyword: value for keyword, value in header.items() if isinstance(value, str) and keyword != "ImageType"}
    numbers = {keyword: float(value) for keyword, value in header.items() if not isinstance(value, str)}
    return Series(
        **{
            "key": f"key{number}",
            "source": "dicom",
            "files": (FOLDER / f"{number}.dcm",),
            "study": "one-study",
            "words": {**words, place: description},
            "numbers": {**numbers, "SeriesNumber": float(number)},
            "image_type": tuple(filter(None, header.get("ImageType", "").split("\\"))),
            **fields,
        }
    )


def identified(*described):
    return identify_series([series(*one, number=i) for i, one in enumerate(described, 1)], FOLDER)


def sequences(found):
    return [verdict.sequence.key if verdict.sequence else None for verdict in found.verdicts]


def chosen(found):
    return {modality.key: int(one.numbers["SeriesNumber"]) for modality, one in found.chosen.items()}


# -- one series ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("description", "header", "expected"), VENDORS + SECOND)
def test_a_series_is_what_its_description_and_parameters_say(description, header, expected):
    assert sequences(identify_series([series(description, header)], FOLDER)) == [expected]


@pytest.mark.parametrize(("name", "expected"), FILES)
def test_a_file_is_what_its_name_says(name, expected):
    assert sequences(identify_series([series(name, place="FileName")], FOLDER)) == [expected]


def test_every_verdict_has_a_reason():
    for description, header, _ in VENDORS:
        (verdict,) = identified((description, header)).verdicts
        assert verdict.why
        assert verdict.sequence is None or verdict.evidence


def test_points_add_up_to_the_score():
    (verdict,) = identified(("t2_tse_tra", T2TSE)).verdicts
    assert verdict.score == 8  # four for the word, four for TR and TE
    assert [str(piece) for piece in verdict.evidence] == [
        "'t2' in the description: T2-weighted (+4 t2)",
        "TR 5200, TE 98: both long (+4 t2)",
    ]


def test_a_protocol_name_that_all_series_share_is_the_examinations():
    names = ["Ax T1", "Ax T2", "Ax FLAIR"]
    exam = {"ProtocolName": "BRAIN WITH CONTRAST PERFUSION"}
    assert sequences(identified(*[(name, exam) for name in names])) == ["t1", "t2", "flair"]


def test_a_protocol_name_helps_where_the_description_is_mute():
    (verdict,) = identified(("5mm", {"ProtocolName": "t1_mprage_sag"})).verdicts
    assert verdict.sequence is Modality.T1
    assert "in the protocol" in verdict.why


def test_words_that_tell_of_two_sequences_alike_leave_a_series_unnamed():
    (verdict,) = identified(("T1 T2 comparison",)).verdicts
    assert verdict.sequence is None
    assert "name it yourself" in verdict.why


def test_what_is_no_magnetic_resonance_is_dropped():
    assert sequences(identified(("T1 fused", {"Modality": "PT"}))) == [None]


def test_a_diffusion_weighting_outweighs_every_word():
    assert sequences(identified(("AX T2 FLAIR", {**FLAIR2D, "DiffusionBValue": 1000}))) == [None]


@pytest.mark.parametrize("agent", ["NONE", "no", "n/a", "", "ohne", "0"])
def test_an_agent_that_is_none_is_no_agent(agent):
    assert sequences(identified(("Ax T1", {"ContrastBolusAgent": agent}))) == ["t1"]


# -- one study -------------------------------------------------------------------------------------------------------


def test_the_time_of_the_injection_tells_t1_from_t1c():
    both = [
        series("t1_mprage_sag", MPRAGE, number=n, acquired_s=at, injected_s=36000.0)
        for n, at in ((1, 35000.0), (2, 36300.0))
    ]
    found = identify_series(both, FOLDER)
    assert chosen(found) == {"t1": 1, "t1c": 2}
    assert "5 min after the injection" in found.verdicts[1].why


def test_what_follows_a_perfusion_series_is_after_contrast_agent():
    times = {"t1_mprage": 100.0, "ep2d_perf": 200.0, "t1_mprage_sag": 300.0}
    found = identify_series(
        [series(name, MPRAGE, number=n, acquired_s=at) for n, (name, at) in enumerate(times.items(), 1)], FOLDER
    )
    assert sequences(found) == ["t1", None, "t1c"]


def test_spin_labelling_is_no_sign_of_contrast_agent():
    times = {"t1_mprage": 100.0, "3D ASL perfusion": 200.0, "t1_mprage_sag": 300.0}
    found = identify_series(
        [series(name, number=n, acquired_s=at) for n, (name, at) in enumerate(times.items(), 1)], FOLDER
    )
    assert sequences(found) == ["t1", None, "t1"]


def test_an_agent_that_is_entered_even_before_the_injection_counts_for_nothing():
    agent = {"ContrastBolusAgent": "Dotarem"}
    assert sequences(identified(("T1 pre", agent), ("T1 ax", agent), ("T1 post", agent))) == ["t1", "t1", "t1c"]


def test_an_agent_in_the_header_alone_tells_nothing_of_later_series():
    first = series("Ax T2", {"ContrastBolusAgent": "Dotarem"}, number=1, acquired_s=100.0)
    later = series("Ax T1", number=2, acquired_s=200.0)
    assert sequences(identify_series([first, later], FOLDER)) == ["t2", "t1"]


def test_a_header_that_contradicts_itself_on_contrast_agent_leaves_a_series_unnamed():
    (verdict,) = identified(("T1 nativ Gd", T1SE)).verdicts
    assert verdict.sequence is None
    assert "contradicts itself" in verdict.why


def test_two_t1_series_of_which_nothing_tells_of_contrast_agent_are_pointed_out():
    found = identified(("t1_mprage_sag", MPRAGE), ("t1_mprage_sag", MPRAGE))
    assert chosen(found) == {"t1": 1}
    assert "no header says whether contrast agent was given" in found.text()


def test_volumes_of_one_series_are_dropped():
    volumes = [series("T1 vibe", BRAVO, number=7, key=f"volume{n}", shape=(64, 64, 40)) for n in range(5)]
    found = identify_series(volumes, FOLDER)
    assert set(sequences(found)) == {None}
    assert "one of 5 volumes of a series (5 alike)" in " ".join(found.text().split())


WHOLE = {"shape": (256, 256, 26), "spacing_mm": (0.9, 0.9, 5.5)}
ISO = {"shape": (256, 256, 176), "spacing_mm": (1.0, 1.0, 1.0)}
SLAB = {"shape": (256, 256, 20), "spacing_mm": (0.7, 0.7, 3.0)}

TIES = [
    ("T1 SE KM", WHOLE, "T1 MPRAGE KM", ISO, 2, "thinner slices (1 mm against 5.5 mm)"),
    ("T1 orbita post", SLAB, "T1 post", WHOLE, 2, "the whole head before a slab"),
    ("T1 post", {**ISO, "shape": (256, 256, 150)}, "T1 post", ISO, 2, "more slices"),
    ("T1 post", {**ISO, "acquired_s": 100.0}, "T1 post", {**ISO, "acquired_s": 900.0}, 2, "any other later"),
    ("T1 pre", {**ISO, "acquired_s": 100.0}, "T1 pre", {**ISO, "acquired_s": 900.0}, 1, "T1 acquired earlier"),
    ("T2 tra", WHOLE, "T2 tra", WHOLE, 2, "any other the higher"),
    ("FLAIR post gd", ISO, "FLAIR", WHOLE, 2, "before contrast agent first"),
]


@pytest.mark.parametrize(("one", "like", "two", "alike", "taken", "rule"), TIES)
def test_of_two_that_fit_one_is_taken_by_a_rule_that_is_told(one, like, two, alike, taken, rule):
    found = identify_series([series(one, number=1, **like), series(two, number=2, **alike)], FOLDER)
    (number,) = chosen(found).values()
    (tie,) = found.ties
    assert number == taken
    assert rule in tie.because
    assert tie.because in found.text()


def test_a_reformatted_series_is_taken_only_where_there_is_no_original():
    made = {**MPRAGE, "ImageType": "DERIVED\\SECONDARY\\MPR"}
    alone = identified(("t1 mprage km cor", made))
    beside = identified(("t1 mprage km cor", made), ("T1 SE km", T1SE))
    assert chosen(alone) == {"t1c": 1}
    assert "made from another one" in alone.text()
    assert chosen(beside) == {"t1c": 2}
    assert not beside.ties
    assert "2 is an original" in beside.text()


def test_the_table_marks_what_is_taken_and_tells_what_is_missing():
    lines = identified(("localizer",), ("t2_tse_tra", T2TSE)).text().splitlines()
    assert [line.startswith("*") for line in lines[1:] if "key" in line] == [False, True]
    assert "Not found: T1, T1c, FLAIR. Any subset will do." in lines


# -- a user's own words ----------------------------------------------------------------------------------------------


def test_a_users_words_outweigh_the_packaged_ones(tmp_path):
    own = tmp_path / "words.yaml"
    own.write_text("flair: [dunkelfluid 3]\ndrop: [forschung]\n", "utf-8")
    rules = rules_with(own)
    found = judge_series([series("Dunkelfluid_3 t2"), series("Forschung t1 mprage")], rules)
    assert [verdict.sequence for verdict in found] == [Modality.FLAIR, None]
    assert "your word for flair" in found[0].why


def test_a_users_word_means_nothing_but_itself(tmp_path):
    own = tmp_path / "words.yaml"
    own.write_text("t2: ['(a+)+$', 'b.*']\n", "utf-8")
    begun = time.perf_counter()
    assert [f.sequence for f in judge_series([series("a" * 60 + "!"), series("bxx")], rules_with(own))] == [None, None]
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("t3: [x]", "'t3'"),
        ("- x", "no table of words"),
        ("t1: x", "no table"),
        ("t1: [", "cannot be read"),
        ("t1: ['']", "empty"),
    ],
)
def test_a_table_of_words_that_says_something_else_is_refused(tmp_path, content, said):
    own = tmp_path / "words.yaml"
    own.write_text(content, "utf-8")
    with pytest.raises(UsageError, match=said):
        rules_with(own)


def test_hostile_text_is_judged_in_no_time():
    begun = time.perf_counter()
    for text in ("t1 " * 10_000, "t1_" + "a " * 5_000, "t1 w " + "x" * 50_000, "\u0130" * 1000, "((((" * 500):
        identified((text, MPRAGE))
    assert time.perf_counter() - begun < 2


# -- NIfTI and sidecars ----------------------------------------------------------------------------------------------


def write_nifti(path, sidecar=None, shape=(12, 12, 12), spacing=12.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.diag([spacing] * 3 + [1.0])), path)
    if sidecar is not None:
        path.with_name(path.name.split(".")[0] + ".json").write_text(json.dumps(sidecar), "utf-8")
    return path


@pytest.fixture
def converted(tmp_path):
    """A study from dcm2niix: file names without information, sidecars with times in seconds."""
    folder = tmp_path / "one-study"
    for number, (description, tr, te, ti) in enumerate(
        [
            ("3 Plane Loc", 0.005, 0.002, 0),
            ("Ax T1 FSE", 0.6, 0.011, 0),
            ("Ax T2", 5.0, 0.1, 0),
            ("Head", 9.0, 0.12, 2.5),
        ],
        start=1,
    ):
        times = {"RepetitionTime": tr, "EchoTime": te, **({"InversionTime": ti} if ti else {})}
        write_nifti(folder / f"im{number}.nii.gz", {"SeriesDescription": description, "SeriesNumber": number, **times})
    return folder


def test_sidecars_in_seconds_are_understood(converted):
    found = identify(converted)
    assert chosen(found) == {"t1": 2, "t2": 3, "flair": 4}
    assert found.verdicts[3].series.numbers["InversionTime"] == 2500


def test_a_sidecar_in_milliseconds_is_understood(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", {"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500})
    assert sequences(identify(tmp_path)) == ["flair"]


def test_names_and_fields_that_name_the_patient_go_nowhere(tmp_path):
    sidecar = {
        "PatientName": "QUIXOTEXX^ALONSOXX",
        "PatientID": "PIDXX4711",
        "SeriesDescription": "T1 mprage QuixoteXX",
        "ImageComments": "SECRETXX",
    }
    write_nifti(tmp_path / "a.nii.gz", sidecar)
    found = identify(tmp_path)
    assert sequences(found) == ["t1"]
    for canary in ("quixotexx", "alonsoxx", "pidxx4711", "secretxx"):
        assert canary not in (found.text() + found.to_json()).lower()


def test_files_without_sidecars_are_known_by_name_and_folder(tmp_path):
    for word in ("T1_pre", "T1_post", "T2", "FLAIR"):
        write_nifti(tmp_path / word / "image.nii.gz")
    assert {m.key: s.files[0].parent.name for m, s in identify(tmp_path).chosen.items()} == {
        "t1": "T1_pre", "t1c": "T1_post", "t2": "T2", "flair": "FLAIR",
    }  # fmt: skip


def test_file_names_that_are_no_utf8_go_through_series_json(tmp_path):
    path = tmp_path / os.fsdecode(b"gr\xfc\xdfe_t1.nii.gz")
    try:
        write_nifti(path)
    except OSError:
        pytest.skip("this file system takes no such names")
    identify(tmp_path).write(tmp_path / "series.json")
    assert read_series_json(tmp_path / "series.json")[Modality.T1].files == (path,)


def test_what_could_steer_a_terminal_is_not_printed(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", {"SeriesDescription": "T1 \x1b[31m\x07 ax"})
    assert "\x1b" not in identify(tmp_path).text()


def test_four_dimensional_files_masks_and_diffusion_are_dropped(tmp_path):
    write_nifti(tmp_path / "t1_perf.nii.gz", shape=(8, 8, 8, 5))
    write_nifti(tmp_path / "t2.nii.gz", shape=(8, 8, 8, 3))
    write_nifti(tmp_path / "t1_mask.nii.gz")
    write_nifti(tmp_path / "flair_like.nii.gz").with_name("flair_like.bval").write_text("0 1000", "ascii")
    found = identify(tmp_path)
    assert sequences(found) == [None] * 4


def test_a_damaged_file_costs_the_others_nothing(tmp_path):
    write_nifti(tmp_path / "t1.nii.gz")
    (tmp_path / "t2.nii.gz").write_bytes(b"nonsense")
    (tmp_path / "t1.json").write_text("{", "utf-8")
    found = identify(tmp_path)
    assert sequences(found) == ["t1"]
    assert any("t2.nii.gz was left out" in note for note in found.notes)


def test_several_studies_are_refused_until_one_is_named(tmp_path):
    for subject in ("sub-01", "sub-02"):
        write_nifti(tmp_path / subject / "anat" / f"{subject}_T1w.nii.gz")
        write_nifti(tmp_path / subject / "perf" / f"{subject}_asl.nii.gz")
    with pytest.raises(InputError, match="2 studies") as refused:
        identify(tmp_path)
    key = str(refused.value).split("key: ")[1].split(" ")[0]
    assert len(identify(tmp_path, study=key).verdicts) == 2
    with pytest.raises(InputError, match="No study has the key"):
        identify(tmp_path, study="other")


def test_an_empty_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="No MRI series"):
        identify(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        identify(write_nifti(tmp_path / "a.nii.gz"))


# -- DICOM -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A study in DICOM, and one NIfTI file that somebody left there."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    from dicom_phantoms import Acquisition, write_series

    folder = tmp_path_factory.mktemp("scanned")
    agent = {"ContrastBolusAgent": "Gadovist", "ContrastBolusStartTime": "102000"}
    described = {
        "localizer": {"RepetitionTime": 8.6, "EchoTime": 4, "AcquisitionTime": "100000"},
        "t1_se_tra": {**T1SE, "AcquisitionTime": "100200"},
        "t2_tse_tra": {**T2TSE, "AcquisitionTime": "100600"},
        "t2_tirm_tra_dark-fluid": {**FLAIR2D, "ScanningSequence": ["SE", "IR"], "AcquisitionTime": "101000"},
        "ep2d_diff_ADC": {"RepetitionTime": 4000, "EchoTime": 90, "AcquisitionTime": "101400"},
        "t1_se_tra_later": {**T1SE, **agent, "AcquisitionTime": "102500"},
    }
    voxels = np.arange(8 * 8 * 12, dtype=np.int16).reshape(8, 8, 12)
    for number, (description, tags) in enumerate(described.items(), 1):
        acquisition = Acquisition(description=description, number=number, tags=tags)
        write_series(folder / str(number), voxels, np.diag([20.0, 20.0, 10.0, 1.0]), acquisition)
    write_nifti(folder / "t1.nii.gz")
    return folder


def test_a_study_in_dicom_is_identified(scanned):
    found = identify(scanned)
    assert chosen(found) == {"t1": 2, "t1c": 6, "t2": 3, "flair": 4}
    assert "1 NIfTI files were ignored" in found.text()


def test_nobody_on_a_dicom_image_is_named_in_table_or_file(scanned):
    from dicom_phantoms import CANARIES

    found = identify(scanned)
    told = (found.text() + found.to_json()).lower()
    assert not [canary for canary in CANARIES if canary in told]


def test_dicom_files_come_back_from_series_json_in_their_order(scanned, tmp_path):
    found = identify(scanned)
    found.write(tmp_path / "series.json")
    again = read_series_json(tmp_path / "series.json")
    for modality, one in found.chosen.items():
        assert [file.resolve() for file in again[modality].files] == [file.resolve() for file in one.files]


# -- series.json -----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(converted):
    """The file beside the images, and a function that edits it."""
    path = converted / "series.json"
    identify(converted).write(path)

    def edit(change):
        document = json.loads(path.read_text("utf-8"))
        change(document)
        path.write_text(json.dumps(document), "utf-8")
        return path

    return edit


def test_series_json_gives_back_what_was_chosen(converted, written):
    again = read_series_json(written(lambda document: None))
    assert {m.key: s.files[0].name for m, s in again.items()} == {
        "t1": "im2.nii.gz", "t2": "im3.nii.gz", "flair": "im4.nii.gz",
    }  # fmt: skip
    assert {s.key for s in again.values()} == {s.key for s in identify(converted).chosen.values()}


def test_an_edited_sequence_is_believed(written):
    def change(document):
        document["series"][1]["sequence"] = "T1ce"
        document["series"][3]["sequence"] = None

    assert {m.key for m in read_series_json(written(change))} == {"t1c", "t2"}


def test_series_json_may_lie_elsewhere_and_be_told_where_the_files_are(converted, tmp_path):
    identify(converted).write(tmp_path / "out" / "series.json")
    assert len(read_series_json(tmp_path / "out" / "series.json")) == 3
    moved = converted.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="no folder"):
        read_series_json(tmp_path / "out" / "series.json")
    assert len(read_series_json(tmp_path / "out" / "series.json", moved)) == 3


def _entry(**changes):
    return lambda document: document["series"][1].update(changes)


def _files(*names):
    return lambda document: document["files"].update({document["series"][1]["key"]: list(names)})


def _none_named(document):
    for entry in document["series"]:
        entry["sequence"] = None


FAULTS = [
    (_entry(sequence="flairr"), "did you mean `flair`"),
    (_entry(sequence=3), "not a sequence"),
    (_entry(sequence="t1+t2"), "not a sequence"),
    (_entry(sequence="t2"), "names T2 twice"),
    (_entry(sequense="t1"), "did you mean `sequence`"),
    (_entry(source="tape"), "dicom or nifti"),
    (_entry(key="unknown"), "has no files"),
    (lambda document: document["series"].append(document["series"][0]), "twice"),
    (lambda document: document["series"].append("t1"), "should be a table"),
    (lambda document: document["series"][1].pop("sequence"), "has no `sequence`"),
    (lambda document: document.update(serie=[]), "did you mean `series`"),
    (lambda document: document.update(series={}), "needs a list"),
    (lambda document: document.update(schema=99), "schema 99"),
    (lambda document: document.pop("files"), "no `files`"),
    (_none_named, "names no sequence"),
    (_files("gone.nii.gz"), "not there"),
    (_files(), "no files"),
    (_files("../outside.nii.gz"), "outside its folder"),
    (_files("a/../../outside.nii.gz"), "outside its folder"),
    (_files("/etc/passwd"), "outside its folder"),
    (_files("..\\outside.nii.gz"), "outside its folder"),
    (_files("C:/outside.nii.gz"), "outside its folder"),
    (_files("link.nii.gz"), "outside its folder"),
    (_files("x" * 5000), "not there"),
]


@pytest.mark.parametrize(("change", "said"), FAULTS)
def test_a_fault_in_series_json_is_named(written, converted, change, said):
    (converted / "link.nii.gz").symlink_to(write_nifti(converted.parent / "outside.nii.gz"))
    with pytest.raises(InputError, match=said):
        read_series_json(written(change))


@pytest.mark.parametrize("content", ["", "[]", "{", '"t1"', "\x00", "[" * 10_000, "9" * 5000])
def test_what_is_no_series_json_is_refused(tmp_path, content):
    path = tmp_path / "series.json"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError):
        read_series_json(path)


# -- by the voxels ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brain():
    """A phantom whose seed was not used to derive the measures, and a function that prepares images of it."""
    study = as_study(phantom.generate(60001, phantom.Settings.at_spacing(3.0)))
    return study.images, lambda images: prepare(Study("phantom", images), Preprocess(spacing_mm=3.0))


def test_images_under_their_own_names_give_no_warning(brain):
    images, prepared = brain
    assert appearance.appearance_warnings(prepared(images)) == ()


@pytest.mark.parametrize("pair", [("T1", "T2"), ("T1C", "FLAIR"), ("T2", "FLAIR"), ("T1C", "T2")])
def test_swapped_images_give_a_warning_that_names_both(brain, pair):
    images, prepared = brain
    one, two = Modality[pair[0]], Modality[pair[1]]
    said = appearance.appearance_warnings(prepared({**images, one: images[two], two: images[one]}))
    assert 1 <= len(said) <= 2
    assert all(one.title in sentence or two.title in sentence for sentence in said)


def test_t1_and_t1c_are_never_told_apart(brain):
    images, prepared = brain
    swapped = {**images, Modality.T1: images[Modality.T1C], Modality.T1C: images[Modality.T1]}
    assert appearance.appearance_warnings(prepared(swapped)) == ()


def test_a_single_t2_that_is_named_t1_gives_a_warning(brain):
    images, prepared = brain
    assert appearance.appearance_warnings(prepared({Modality.T1: images[Modality.T2]})) == (
        "The image named T1 looks like T2. Check it; the study is segmented anyway.",
    )


def test_probabilities_of_the_kinds_sum_to_one():
    rng = np.random.default_rng(0)
    measures = rng.normal(size=(4, 4))
    measures[1] = np.nan
    shares = appearance.kind_probabilities(
        measures, np.corrcoef(rng.normal(size=(4, 9))), appearance.appearance_model()
    )
    assert np.allclose(shares.sum(1), 1)
    assert (shares >= 0).all()


def test_a_slab_is_judged_without_places_in_the_head():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, 40, 40, 12))
    found = appearance.appearance_measures(images, np.ones(images.shape, bool), 3.0)
    assert np.isnan(found[0, :2]).all()
    assert np.isfinite(found[0, 2:]).all()

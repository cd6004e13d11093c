"""Every producer of warnings and notes in the source is found, triggered, and read on the terminal and in the record.

The source is searched for calls of the channel (`warn`, `note`) and of loggers. A call of the channel needs a scene of
`notice_scenes` that triggers it; a warning or error of a logger needs a reason for not being in the channel. A new call
without its line here fails.
"""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import glimpseg
from notice_scenes import SCENES, Stage, play, prepared

ROOT = Path(glimpseg.__file__).parent
CHANNEL = ("warn", "note")
LOGGED = re.compile(r"(log|logger|logging)\.(warning|error|exception|critical)|warnings\.warn")

TRIGGERS = {
    "data/brains.py:add": ("disturbed", r"study: T2: no air was found, so the whole image is taken for brain\."),
    "data/brains.py:brain": ("disturbed", r"study: FLAIR: the air is not one value .* was taken from T1c\."),
    "data/brains.py:brain#2": (
        "noisy_slab",
        r"study: FLAIR: .* found by a threshold of 1\d\.\d above the air \(\d+ ml",
    ),
    "data/dicom/attributes.py:inherited_headers": ("invalid_attributes", r"Attributes written empty.*: StudyDate\."),
    "data/dicom/find.py:_tell_counts": ("dicom_tree", r"3 MR series in 108 files\."),
    "data/dicom/find.py:_tell_counts#2": ("dicom_tree", r"Ignored: 1 files that are not DICOM, 0 other"),
    "data/dicom/find.py:_tell_counts#3": ("dicom_tree", r"36 files of series 2 have a SeriesInstanceUID each"),
    "data/dicom/find.py:_tell_counts#4": ("dicom_tree", r"1 duplicate files were ignored\."),
    "data/dicom/find.py:_tell_counts#5": ("dicom_tree", r"1 damaged DICOM files were ignored\."),
    "data/dicom/find.py:_tell_counts#6": ("dixon", r"2 studies of one patient\."),
    "data/dicom/read.py:read_series": ("dicom_tree", r"Series 1 \(t1_se_tra_km\): 1 slice .* Rows 7 against 48\."),
    "data/identify/nifti_series.py:_sidecar": ("archive", r"The JSON beside an image is not used: "),
    "data/layouts/find.py:_tell_notes": ("unused_columns", r"studies\.csv: unused columns: site\."),
    "data/layouts/find.py:_warn_unreadable": ("tree", r"closed could not be opened \(Permission denied\)\."),
    "data/layouts/find.py:find_studies": ("trained", r"S1 has no reference and is left out\."),
    "data/layouts/find.py:find_studies#2": ("evaluated", r"S0-adc\.nii\.gz is not used: 'adc' in its name"),
    "data/nifti.py:_check_affine": ("headers", r"study: FLAIR is compressed, although its name ends otherwise"),
    "data/nifti.py:_check_affine#2": ("headers", r"study: T2 says nothing of its orientation"),
    "data/nifti.py:_check_affine#3": ("headers", r"study: T1c: sform and qform differ by up to 17\.32 mm"),
    "data/nifti.py:_check_shape": ("headers", r"study: T1 has the shape \(40, 48, 36, 1\)"),
    "data/nifti.py:_finite": ("headers", r"study: T1: 3 NaN or infinite voxels"),
    "data/preprocess.py:_prepared": ("headers", r"study: T2 lies on another grid"),
    "data/preprocess.py:_warn_of_slab": ("noisy_slab", r"study: FLAIR has 6 slices along one axis, 18 mm in all"),
    "data/raw/itk.py:perpendicular_axes": ("sheared", r"The axes of an image are not quite perpendicular"),
    "data/raw/preparation.py:_register_and_strip": ("moved", r"FLAIR misaligned\? yes: it is said so\."),
    "data/raw/preparation.py:add_brain_mask": ("raw_head", r"deepbet found the brain in T1 \(38\d ml; 700 to 2300 are"),
    "data/raw/preparation.py:register": ("within_a_voxel", r"FLAIR agrees with T1c within a voxel"),
    "data/raw/preparation.py:register#2": ("not_better", r"FLAIR was not moved: .* \(6\.0 mm and 0\.0 degrees\)"),
    "data/raw/preparation.py:register#3": ("far_away", r"study: FLAIR was registered to T1c: 33\.0 mm .* further than"),
    "data/raw/preparation.py:register#4": ("moved", r"FLAIR was registered to T1c: 6\.0 mm and 0\.0 degrees\."),
    "data/raw/strip.py:brain_mask": ("raw_head", r"deepbet found only 38\d ml of brain\."),
    "data/spikes.py:warn_of_repair": ("disturbed", r"study: T1c: \d+ voxels were too bright for 16 bits"),
    "data/spikes.py:warn_of_repair#2": ("disturbed", r"study: T1: \d+ intensities that no tissue has \(spikes\)"),
    "data/splits/__init__.py:select_studies": ("part_of_a_list", r"Only 1 of the 100 cases of brats2020/test"),
    "data/unpack.py:_unpack": ("archive", r"1 links, devices or sparse files in the archive were left out\."),
    "evaluation/calibrate.py:calibrate": ("calibrated", r"S1 has no reference and is left out\."),
    "evaluation/evaluate.py:_select": ("evaluated", r"S1 has no reference and is left out\."),
    "evaluation/evaluate.py:_select#2": ("evaluated", r"S2 has the sequences of none of the subsets"),
    "evaluation/study_file.py:is_scored": ("evaluated_again", r"The files of S0 have changed since it was scored"),
    "model/loading.py:stored_model": ("changed_method", r"The source of the method mine has changed"),
    "model/shipped.py:place_of": ("box", r"`box` is the model that comes with glimpseg"),
    "report/evaluation.py:_picture": ("reported", r"No picture of S0: a file of it cannot be read"),
    "segmentation/inference.py:_with_enough_memory": ("out_of_memory", r"The memory of cpu did not suffice"),
    "segmentation/inputs.py:_contents": ("dicom_tree", r"letters is not used: no MR image was found in it\."),
    "segmentation/inputs.py:_contents#2": ("tree", r"S1-adc\.nii\.gz is not used: 'adc' in its name"),
    "segmentation/inputs.py:_identified": ("archive", r"T1c: series \w+ would fit as well as"),
    "segmentation/inputs.py:_identified#2": ("archive", r"series S1-adc is not used: 'adc' in the file name"),
    "segmentation/inputs.py:_only_series": ("dixon", r"T1c: series 1 \(.*\) in the same folder was left out"),
    "segmentation/inputs.py:input_from_series": ("dicom_tree", r"FLAIR is series \w+ \(t2_tirm_tra_dark-fluid\)\."),
    "segmentation/passes.py:_reviewed": ("swapped", r"Look at this one: the voxels of T1 look like another sequence"),
    "segmentation/preparation.py:prepare_input": ("swapped", r"study: The image named T1 looks like T2\."),
    "segmentation/preparation.py:warn_of_output": ("no_dicom_output", r"No DICOM output.* no FrameOfReferenceUID"),
    "segmentation/result.py:_write_dicom": ("late_refusal", r"No DICOM output .* only NIfTI: The writer refuses\."),
}
"""Scene that triggers each call of the channel, and its text. A call is named by module, function, and number in it."""
MORE = [
    ("tree", r"1 files are links without a target \(S2-t1n\.nii\.gz\); they count as missing\."),
    ("tree", r"S1: the images in SegmentationsForQC/one are taken for derived files"),
    ("patients", r"The ids of 2 studies are made of the folder of the patient and their own: P1_week01, P2_week01\."),
    ("other_encoding", r"studies\.csv is in UTF-16; it was read as such\."),
    ("other_encoding", r"studies\.csv has 1 cells with NA; they count as blank\."),
    ("other_encoding", r"studies\.csv has paths with backslashes"),
    ("other_channels", r"Channels other than the four sequences were ignored: ADC\."),
    ("archive", r"S1-t2w\.nii\.gz was left out: it cannot be read as NIfTI"),
    ("calibrated", r"S1 has no reference and is left out\."),
    ("trained", r"S0: T2 lies on another grid"),
    ("prepared", r"S0: T2 lies on another grid"),
    ("evaluated", r"S0: T2 lies on another grid"),
    ("identified", r"1 MR series in 36 files\."),
]
"""Further texts that pass through a call above, and verbs that read studies."""
UNRECORDED = {"reported": "The report of an evaluation has no record; the page says that there is no picture."}
"""Scenes whose texts are on the terminal alone."""
COSTLY = {
    "model/backend.py:_retreat": (
        "tests/test_backend.py", "test_torch_takes_over_from_a_copy_that_gives_other_labels",
        "OpenVINO or ONNX Runtime has to be installed; the note is in `backend` and `warnings` of run.json.",
    ),
}  # fmt: skip
"""Calls that another test triggers, because a scene would need more than a test run has."""
BESIDE = {
    "batch/on_slurm.py:segment_on_slurm": "a job of the cluster; its studies are in failures.json",
    "batch/progress.py:fail": "an error: failures.json has it",
    "cli/about.py:doctor": "the machine",
    "cli/app.py:handleError": "the log file itself",
    "evaluation/calibrate.py:_count_all": "an error: notes.csv has it, too",
    "evaluation/compare.py:_common_cases": "evaluations, no studies: comparison.json names the cases",
    "evaluation/compare.py:_common_metrics": "evaluations, no studies",
    "evaluation/compare.py:_common_subsets": "evaluations, no studies",
    "evaluation/evaluate.py:_scoring_tasks": "an error: `failed` of evaluation.json has it",
    "evaluation/evaluate.py:_warn_of_other_intensities": "the protocol, which evaluation.json names",
    "evaluation/evaluate.py:evaluate": "the machine, which evaluation.json names",
    "model/transfer.py:initialise": "a model that training begins from",
    "model/transfer.py:initialise#2": "a model that training begins from",
    "model/transfer.py:initialise#3": "a model that training begins from",
    "priors/crossfit.py:train_decoder": "a fold of the training of priors",
    "runtime/json_lines.py:read_json_lines": "a log, which names studies that are there or steps that were made",
    "runtime/selftest.py:require_correct_convolutions": "the machine",
    "training/compiling.py:compile_networks": "the machine",
    "training/compiling.py:compile_networks#2": "the machine",
    "training/dataset.py:_write_table": "the cache; its entries keep the notices of their studies",
    "training/dataset.py:find_training_studies": "the recipe, which the provenance holds",
    "training/loop.py:_restore": "the run",
    "training/state.py:begin": "the recipe",
}
"""Warnings and errors of loggers that are not about a study, or that another file records."""


def calls(wanted):
    """Return the calls of the source whose function has a wanted name: `module:function`, numbered from the second."""
    found, counts = [], Counter()
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        module = path.relative_to(ROOT).as_posix()
        for node in sorted(
            (n for n in ast.walk(tree) if isinstance(n, ast.Call)), key=lambda n: (n.lineno, n.col_offset)
        ):
            if not wanted(ast.unparse(node.func)):
                continue
            inside = [one for one in functions if one.lineno <= node.lineno <= (one.end_lineno or 0)]
            name = f"{module}:{max(inside, key=lambda one: one.lineno).name if inside else ''}"
            counts[name] += 1
            found.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return found


def test_every_call_of_the_channel_has_a_trigger():
    assert sorted(calls(lambda name: name in CHANNEL)) == sorted(TRIGGERS)


def test_no_other_name_is_given_to_the_channel():
    """The search finds calls by the names `warn` and `note`, which have to be imported as such."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "glimpseg.data.notices":
                assert not [alias for alias in node.names if alias.name in CHANNEL and alias.asname], path
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert not [alias for alias in node.names if alias.name.endswith("data.notices")], path


def test_every_warning_of_a_logger_has_a_reason():
    assert sorted(calls(LOGGED.fullmatch)) == sorted([*BESIDE, *COSTLY])


def test_what_another_test_triggers_is_there():
    for file, test, _ in COSTLY.values():
        assert f"def {test}(" in (Path(__file__).parents[1] / file).read_text("utf-8")


@pytest.fixture(scope="module")
def told(tmp_path_factory, model_folder):
    """Function that plays a scene once, and returns what it told."""
    return cache(lambda scene: play(scene, tmp_path_factory.mktemp("scenes") / scene, model_folder))


@pytest.mark.parametrize(
    ("scene", "text"),
    [pytest.param(*pair, id=key) for key, pair in TRIGGERS.items()] + [pytest.param(*m) for m in MORE],
)
def test_it_is_on_the_terminal_and_in_the_record(told, scene, text):
    found = told(scene)
    assert [line for line in found.terminal if re.search(rf"^(\w+: )?{text}", line)], found.terminal
    assert scene in UNRECORDED or [line for line in found.recorded if re.match(text, line)], found.recorded


def test_every_scene_is_used():
    assert {scene for scene, _ in [*TRIGGERS.values(), *MORE]} == set(SCENES)


@pytest.mark.parametrize("scene", ["dicom_tree", "archive", "headers", "tree"])
def test_no_scene_tells_more_than_ten_lines_of_a_study_or_one_twice(told, scene):
    lines = [line for line in told(scene).terminal if "used" not in line]
    assert len(lines) == len(set(lines))
    assert all(count <= 10 for count in Counter(line.split(":")[0] for line in lines).values())


def test_notices_of_a_study_in_the_cache_are_counted_and_stay_in_the_table(tmp_path):
    stage = Stage(tmp_path, tmp_path, pytest.MonkeyPatch())
    prepared(stage)
    again = stage.run("prepare", tmp_path / "data", "-o", stage.out, "--recipe", "unet/phantom")
    assert "1 studies of the cache have warnings or notes: notes.csv there has all of them." in again.terminal
    assert not [line for line in again.terminal if "another grid" in line]
    assert [text for text in again.recorded if text.startswith("S0: T2 lies on another grid")]


def test_the_report_shows_the_warnings_of_each_study(told):
    page = told("evaluated").recorded[-1]
    assert re.search(r'<td class="word">S0</td><td class="word">S0: T2 lies on another grid', page)
    assert "S2 has the sequences of none of the subsets" in page

"""Previews and charts: left and right, the slice, outlines, bars and points."""

import colorsys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from glimpseg.modality import Modality
from glimpseg.model.loading import Model
from glimpseg.picture import PlaneView, draw_plane, grey_window, largest_slices, legend_lines, plane_image, preview
from glimpseg.region import COLOURS, Label
from glimpseg.report import figures
from glimpseg.segmentation.result import Segmentation
from glimpseg.volume import Volume

# A head of 20 x 30 x 16 voxels of 1 x 2 x 3 mm in RAS order: x grows to the patient's right, y forward, z up. Air is 0,
# the brain 100, its right front upper eighth 200. A preview leaves two voxels of air around the brain, so that
# x 2 to 17, y 3 to 26 and z 1 to 14 are drawn: 16, 24 and 14 voxels.
SHAPE, SPACING = (20, 30, 16), (1.0, 2.0, 3.0)


def brain():
    image = np.zeros(SHAPE, np.float32)
    image[4:16, 5:25, 3:13] = 100
    image[10:16, 15:25, 8:13] = 200
    return image


def tumour():
    """Enhancing tumour on the right, in front and above: columns 4 and 5, rows from 4 on in every plane."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[12:14, 20:23, 9:11] = Label.ET
    return labels


def ras(array):
    return Volume(array, np.diag([*SPACING, 1.0]))


def stored_as_ail(array):
    """The same voxels in another file order: the first axis runs forward, the second down, the third to the left."""
    affine = np.array([[0, 0, -1.0, 19], [2.0, 0, 0, 0], [0, -3.0, 0, 45], [0, 0, 0, 1]])
    return Volume(np.ascontiguousarray(array.transpose(1, 2, 0)[:, ::-1, ::-1]), affine)


def cells(figure):
    """The axes of a preview, a list of three for each row."""
    return np.array(figure.axes).reshape(-1, 3)


def rendered(figure):
    """Pixels of a figure as they would be written, rows from the top, and the axes that they show."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].astype(float)


def inside(pixels, cell):
    """The pixels of one of the axes."""
    box = cell.get_window_extent()
    height = len(pixels)
    return pixels[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]


def outlines(cell, colour):
    """Left, right, top and bottom end of each line of a colour, in columns and rows of the picture."""
    sets = [one for one in cell.collections if not one.filled and to_hex(one.get_edgecolor()[0]) == to_hex(colour)]
    ends = [np.concatenate([path.vertices for path in one.get_paths()]) for one in sets]
    return [(*(float(f(one[:, 0])) for f in (min, max)), *(float(f(one[:, 1])) for f in (min, max))) for one in ends]


# Left and right


def drawn():
    """The three planes of the head, stored in another order than RAS, each with its pixels."""
    figure = preview({Modality.T1C: stored_as_ail(brain())}, stored_as_ail(tumour()))
    pixels = rendered(figure)
    return [(cell, inside(pixels, cell)) for cell in cells(figure)[0]]


RADIOLOGICAL = ("RLAP", "RLSI", "APSI")
"""Letters at left, right, top and bottom of the axial, coronal and sagittal plane, as radiologists have them."""


def letters_beside(seen):
    """The letters of the horizontal and vertical side at which something is seen, by plane."""
    found = []
    for letters, (horizontal, vertical) in zip(RADIOLOGICAL, seen, strict=True):
        found.append(letters[0 if horizontal == "left" else 1] + letters[2 if vertical == "top" else 3])
    return found


def test_letters_stand_at_the_sides_of_the_radiological_view():
    for letters, (cell, _) in zip(RADIOLOGICAL, drawn(), strict=True):
        box = cell.get_window_extent()
        found = {}
        for text in cell.texts:
            x, y = np.subtract(text.get_window_extent().get_points().mean(0), box.p0) / box.size  # of the letter
            side = min({"left": x, "right": 1 - x, "bottom": y, "top": 1 - y}.items(), key=lambda one: one[1])
            assert 0 < side[1] < 0.1  # inside the plane, at its edge
            found[side[0]] = text.get_text()
        assert "".join(found[side] for side in ("left", "right", "top", "bottom")) == letters


def test_a_tumour_on_the_right_in_front_and_above_is_drawn_beside_these_letters():
    seen = []
    for _, pixels in drawn():
        rows, columns = np.nonzero(pixels[:, :, 1] - pixels[:, :, 2] > 40)  # yellow; grey has as much blue as green
        height, width = pixels.shape[:2]
        seen.append(
            ("left" if columns.mean() < width / 2 else "right", "top" if rows.mean() < height / 2 else "bottom")
        )
    assert letters_beside(seen) == ["RA", "RS", "AS"]


def test_the_image_is_bright_where_the_patient_is():
    seen = []
    for _, pixels in drawn():
        left, right = np.array_split(pixels.mean(2), 2, axis=1)
        top, bottom = np.array_split(pixels.mean(2), 2, axis=0)
        seen.append(
            ("left" if left.mean() > right.mean() else "right", "top" if top.mean() > bottom.mean() else "bottom")
        )
    assert letters_beside(seen) == ["RA", "RS", "AS"]


def test_a_plane_is_as_wide_and_high_as_its_millimetres():
    # 16 x 24 x 14 voxels of 1 x 2 x 3 mm are 16 x 48 x 42 mm.
    boxes = [cell.get_window_extent() for cell, _ in drawn()]
    assert [box.width / box.height for box in boxes] == pytest.approx([16 / 48, 16 / 42, 48 / 42], rel=1e-3)


def test_the_order_of_a_file_changes_nothing_in_the_picture():
    stored = preview({Modality.T1C: stored_as_ail(brain())}, stored_as_ail(tumour()), stored_as_ail(tumour()))
    other = preview({Modality.T1C: ras(brain())}, ras(tumour()), ras(tumour()))
    for one, two in zip(cells(stored)[0], cells(other)[0], strict=True):
        assert outlines(one, "white") == outlines(two, "white") != []
        assert np.array_equal(one.images[0].get_array(), two.images[0].get_array())


def test_a_users_settings_of_matplotlib_turn_no_picture_upside_down():
    with matplotlib.rc_context({"image.origin": "lower"}):
        cell = cells(preview({Modality.T1: ras(brain())}, ras(tumour())))[0, 0]
    assert cell.images[0].origin == "upper"
    assert cell.get_ylim() == (23.5, -0.5)


def test_a_cut_has_the_right_at_the_left_and_the_front_at_the_top():
    # Voxel values are their places: 100 x + 10 y + z.
    volume = np.add.outer(np.add.outer(100 * np.arange(2), 10 * np.arange(3)), np.arange(4))
    where = (1, 2, 3)
    assert plane_image(volume, "axial", where).tolist() == [[123, 23], [113, 13], [103, 3]]  # z = 3; rows y = 2, 1, 0
    assert plane_image(volume, "coronal", where).tolist() == [[123, 23], [122, 22], [121, 21], [120, 20]]  # y = 2
    assert plane_image(volume, "sagittal", where)[:2].tolist() == [[123, 113, 103], [122, 112, 102]]  # x = 1; columns y


# Which slice


def test_planes_cut_where_the_tumour_is_largest():
    # Of its three voxels two have x = 1, two have y = 2, and two have z = 3.
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1, 2, 3], labels[1, 4, 3], labels[5, 2, 1] = Label.NCR, Label.NCR, Label.RC
    assert largest_slices(labels, np.zeros((6, 5, 4))) == (1, 2, 3)


def test_without_a_tumour_planes_cut_where_the_head_is_largest():
    # Air is -3. Of the head's 4 x 2 + 2 voxels most have x = 2 (8 of 10), y = 5 (5) and z = 4 (6).
    image = np.full((8, 8, 8), -3.0, np.float32)
    image[2, 2:6, 3:5] = 0
    image[3, 5, 4], image[4, 2, 4], image[2, 5, 2] = 9, 9, 9
    # x: 9 at 2, 1 at 3, 1 at 4. y: 3 at 2, 2 at 3, 2 at 4, 4 at 5. z: 1 at 2, 4 at 3, 6 at 4.
    assert largest_slices(np.zeros((8, 8, 8), np.uint8), image) == (2, 5, 4)


def plane_of(image, z):
    """The axial plane of the drawn part of an array, pixel by pixel."""
    return [[image[17 - column, 26 - row, z] for column in range(16)] for row in range(24)]


def gradient():
    """A head whose every slice has a value of its own: 100 + z."""
    image = np.zeros(SHAPE, np.float32)
    image[4:16, 5:25, 3:13] = 100 + np.arange(3, 13)
    return image


@pytest.mark.parametrize(
    ("found", "true", "z"), [((5, 6, 9), (7, 8, 4), 9), (None, (7, 8, 4), 4), ((5, 6, 9), None, 9)]
)
def test_the_slice_is_that_of_the_result_else_of_the_reference(found, true, z):
    labels, reference = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    if found:
        labels[found] = Label.ED
    if true:
        reference[true] = Label.ED
    figure = preview({Modality.T2: ras(gradient())}, ras(labels), ras(reference) if true else None)
    assert cells(figure)[0, 0].images[0].get_array().tolist() == plane_of(gradient(), z)


def test_air_around_the_head_is_cut_off_but_for_a_25th_and_two_voxels_at_least():
    # 100 // 25 = 4 voxels of air in front and behind; 2 at left and right; above, the array ends after 1.
    image = np.zeros((20, 100, 10), np.float32)
    image[8:12, 40:60, 4:9] = 1 + np.arange(5)
    figure = preview({Modality.T2: ras(image)}, ras(np.zeros(image.shape, np.uint8)))
    assert cells(figure)[0, 0].images[0].get_array().shape == (28, 8)
    assert cells(figure)[0, 1].images[0].get_array().shape == (8, 8)  # z 2 to 9


def test_every_sequence_is_drawn_on_the_part_where_any_has_a_head():
    other = np.zeros(SHAPE, np.float32)
    other[1:8, 5:25, 3:13] = 7
    figure = preview({Modality.T1: ras(brain()), Modality.FLAIR: ras(other)}, ras(tumour()))
    for row in cells(figure):
        assert row[0].images[0].get_array().shape == (24, 18)  # x 0 to 17


def test_an_image_without_a_head_is_drawn_whole():
    figure = preview({Modality.T1: ras(np.zeros(SHAPE, np.float32))}, ras(np.zeros(SHAPE, np.uint8)))
    assert cells(figure)[0, 0].images[0].get_array().shape == (30, 20)


# Grey


def test_black_and_white_are_half_a_percent_from_the_ends_of_the_tissue():
    # Tissue is 1 to 1000. Of 999 steps, 0.5 % are 4.995 and 99.5 % are 994.005.
    image = np.zeros((12, 12, 12), np.float32)
    image[1:11, 1:11, 1:11] = np.arange(1, 1001).reshape(10, 10, 10)
    assert grey_window(image) == pytest.approx((5.995, 995.005))


def test_an_image_of_one_value_has_a_window_too():
    image = np.zeros((12, 12, 12), np.float32)
    assert grey_window(image) == (0, 1e-6)
    image[5, 5, 5] = 3
    assert grey_window(image) == (3, 3 + 1e-6)


def test_every_sequence_has_a_grey_window_of_its_own():
    # Of brain() the 0.5 % and 99.5 % are its two values; one voxel of 2400 below and one above count for nothing.
    image = brain()
    image[5, 6, 9], image[12, 17, 9] = -50, 5000
    figure = preview({Modality.T1: ras(image), Modality.FLAIR: ras(10 * image)}, ras(tumour()))
    windows = [row[0].images[0].get_clim() for row in cells(figure)]
    assert windows == [(100, 200), (1000, 2000)]
    assert {cell.images[0].get_cmap().name for cell in figure.axes} == {"gray"}


# Outlines and words


@pytest.mark.parametrize(
    ("label", "low", "high"), [(Label.NCR, 0, 20), (Label.ED, 90, 150), (Label.ET, 40, 65), (Label.RC, 190, 250)]
)
def test_necrosis_is_red_oedema_green_enhancement_yellow_and_a_cavity_blue(label, low, high):
    hue = 360 * colorsys.rgb_to_hls(*to_rgb(COLOURS[label]))[0]
    assert low <= hue <= high


def test_an_outline_runs_between_the_voxels_of_a_label_and_its_neighbours():
    # In the drawn part the tumour has x 10 and 11 of 16, y 17 to 19 of 24, z 8 and 9 of 14. From the right: columns
    # 15 - 11 = 4 to 5. From the front: 23 - 19 = 4 to 6. From above: 13 - 9 = 4 to 5.
    figure = preview({Modality.T1C: ras(brain())}, ras(tumour()))
    axial, coronal, sagittal = (outlines(cell, COLOURS[Label.ET]) for cell in cells(figure)[0])
    assert axial == [(3.5, 5.5, 3.5, 6.5)]
    assert coronal == [(3.5, 5.5, 3.5, 5.5)]
    assert sagittal == [(3.5, 6.5, 3.5, 5.5)]


def flat(**cuts):
    """The axes of one axial plane of 9 x 9 voxels."""
    cell = Figure().subplots()
    image = np.zeros((9, 9, 1), np.float32)
    planes = {name: array[:, :, None] for name, array in cuts.items()}
    view = PlaneView(plane="axial", voxel=(0, 0, 0), spacing_mm=(1, 1, 1))
    draw_plane(cell, image, planes["labels"], view, reference=planes.get("reference"), window=(0, 1))
    return cell


def test_every_label_has_an_outline_and_a_tint_of_its_own_colour():
    labels = np.zeros((9, 9), np.uint8)
    labels[1, 1], labels[3, 1], labels[5, 1], labels[7, 1] = Label.RC, Label.NCR, Label.ET, Label.ED
    cell = flat(labels=labels)
    # Column 8 - x, row 8 - y = 7; each is one voxel, half a voxel of outline around its centre.
    for label, column in ((Label.RC, 7), (Label.NCR, 5), (Label.ET, 3), (Label.ED, 1)):
        assert outlines(cell, COLOURS[label]) == [(column - 0.5, column + 0.5, 6.5, 7.5)]
        (tint,) = [one for one in cell.collections if one.filled and
                   to_hex(one.get_facecolor()[0]) == to_hex(COLOURS[label])]  # fmt: skip
        assert tint.get_facecolor()[0][3] == 0.25
        assert tint.get_paths()[0].get_extents().extents.tolist() == [column - 0.5, 6.5, column + 0.5, 7.5]


def test_the_reference_is_one_dashed_white_line_around_all_its_labels():
    labels, reference = np.zeros((2, 9, 9), np.uint8)
    reference[2:4, 3], reference[4:6, 3] = Label.NCR, Label.ED
    cell = flat(labels=labels, reference=reference)
    (line,) = cell.collections
    assert outlines(cell, "white") == [(2.5, 6.5, 4.5, 5.5)]  # columns 8 - 5 to 8 - 2, row 8 - 3
    assert line.get_linestyle()[0][1] is not None  # not solid


def test_nothing_is_outlined_where_nothing_is():
    reference_of_necrosis = np.zeros((9, 9), np.uint8)
    reference_of_necrosis[4, 4] = Label.NCR
    assert len(flat(labels=np.zeros((9, 9), np.uint8), reference=reference_of_necrosis).collections) == 1
    assert len(flat(labels=np.zeros((9, 9), np.uint8), reference=np.zeros((9, 9), np.uint8)).collections) == 0


def test_the_legend_names_the_labels_that_occur_and_the_reference():
    def lines(labels, reference=None):
        found = legend_lines(np.array(labels), reference)
        return [(line.get_label(), line.get_color(), line.get_linestyle()) for line in found]

    every = [("necrosis", COLOURS[Label.NCR], "-"), ("oedema", COLOURS[Label.ED], "-"),
             ("enhancing", COLOURS[Label.ET], "-"), ("cavity", COLOURS[Label.RC], "-")]  # fmt: skip
    assert lines([0, 4, 3, 2, 1]) == every
    assert lines([0, 3]) == [every[2]]
    assert lines([0], np.array([0])) == [("reference (whole)", "white", "--")]


def test_a_preview_names_its_sequences_its_title_and_its_labels():
    images = {Modality.FLAIR: ras(brain()), Modality.T1: ras(brain())}
    figure = preview(images, ras(tumour()), ras(tumour()), "FLAIR + T1")
    assert [row[0].get_title(loc="left") for row in cells(figure)] == ["FLAIR", "T1"]
    assert figure.get_suptitle() == "FLAIR + T1"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["enhancing", "reference (whole)"]
    assert outlines(cells(figure)[1, 0], "white") == [(3.5, 5.5, 3.5, 6.5)]


def test_words_are_light_on_black_and_every_row_has_its_height():
    figure = preview({one: ras(brain()) for one in (Modality.T1, Modality.T2)}, ras(tumour()), title="T1 + T2")
    assert to_hex(figure.get_facecolor()) == "#000000"
    texts = [figure._suptitle, *figure.legends[0].get_texts(), *(row[0].title for row in cells(figure))]
    texts += [row[0]._left_title for row in cells(figure)]
    shown = [text for text in texts if text.get_text()]
    assert [text.get_text() for text in shown] == ["T1 + T2", "enhancing", "T1", "T2"]
    assert {to_hex(text.get_color()) for text in shown} == {"#ffffff"}
    assert {to_hex(text.get_color()) for text in cells(figure)[0, 0].texts} == {to_hex("0.8")}
    assert not figure.legends[0].get_frame_on()
    assert figure.get_size_inches().tolist() == pytest.approx([9.6, 6.9])  # 2 rows of 3.1 inches, 0.7 for the words


def test_the_legend_stands_below_the_planes():
    figure = preview({Modality.T1: ras(brain())}, ras(tumour()))
    rendered(figure)
    assert figure.get_suptitle() == ""
    assert figure.legends[0].get_window_extent().y1 <= min(cell.get_window_extent().y0 for cell in figure.axes)


def test_outlines_are_thinner_than_a_point():
    figure = preview({Modality.T1: ras(brain())}, ras(tumour()), ras(tumour()))
    lines = [one for one in figure.axes[0].collections if not one.filled]
    assert [width for one in lines for width in one.get_linewidth()] == [0.9, 0.9]


# The preview of a segmentation


def test_the_preview_of_a_result_has_each_used_sequence_on_the_results_grid():
    recipe, provenance = SimpleNamespace(method="unet"), {"sha256": {"weights.safetensors": "0123456789ab"}}
    model = Model(SimpleNamespace(), recipe, provenance, Path("m"))
    images = {Modality.FLAIR: stored_as_ail(10 * brain()), Modality.T1C: ras(brain()), Modality.T2: ras(brain())}
    result = Segmentation(labels=ras(tumour()), used=Modality.T1C | Modality.FLAIR, model=model, images=images)
    figure = result.preview()
    assert figure.get_suptitle() == "T1c + FLAIR   absent: T1 + T2   (unet-01234567)"
    assert [row[0].get_title(loc="left") for row in cells(figure)] == ["T1c", "FLAIR"]
    for row, factor in zip(cells(figure), (1, 10), strict=True):
        assert row[0].images[0].get_array().tolist() == plane_of(factor * brain(), 9)
        assert outlines(row[0], COLOURS[Label.ET]) == [(3.5, 5.5, 3.5, 6.5)]


# Charts of an evaluation


def dots(axes):
    """The subsets beside the rows: by place, whether a dot is filled."""
    marks = [line for line in axes.lines if line.get_marker() == "o" and line.get_clip_on() is False]
    return {
        (round(float(line.get_xdata()[0]), 2), int(line.get_ydata()[0])): line.get_markerfacecolor() != "none"
        for line in marks
    }


def test_rows_begin_at_the_top_with_dots_for_flair_t1_t1c_and_t2():
    axes = figures.strips(np.zeros((1, 2)), ["t1c", "t2+flair"], "Dice").axes[0]
    assert axes.get_ylim() == (1.5, -0.5)
    assert [dots(axes)[x, 0] for x in (-0.30, -0.22, -0.14, -0.06)] == [False, False, True, False]
    assert [dots(axes)[x, 1] for x in (-0.30, -0.22, -0.14, -0.06)] == [True, False, False, True]
    names = {round(text.get_position()[0], 2): text.get_text() for text in axes.texts}
    assert names == {-0.30: "FLAIR", -0.22: "T1", -0.14: "T1c", -0.06: "T2"}


def test_strips_have_a_dot_for_each_case_and_a_bar_at_the_median():
    values = np.array([[10.0, 1], [30, np.nan], [90, 3], [40, 5]])
    axes = figures.strips(values, ["t1", "t2"], "Dice in %", (0, 100)).axes[0]
    for row, expected in enumerate(([10, 30, 90, 40], [1, 3, 5])):
        x, y = axes.collections[row].get_offsets().T
        assert x.tolist() == expected
        assert np.abs(y - row).max() <= 0.27
    bars = [line for line in axes.lines if line.get_linewidth() == 1.8]
    assert [line.get_xdata()[0] for line in bars] == [35, 3]  # (30 + 40) / 2; the middle of 1, 3, 5
    assert [np.mean(line.get_ydata()) for line in bars] == [0, 1]
    assert axes.get_xlim() == (-2, 102)  # 2 % of the range beside it
    assert axes.get_xlabel() == "Dice in %"


def test_differences_are_shown_around_a_line_at_zero():
    axes = figures.strips(np.array([[-1.0], [2]]), ["t1"], "points").axes[0]
    assert [0, 0] in [list(line.get_xdata()) for line in axes.lines]


def test_a_heat_map_has_the_best_case_first():
    # Means 20, 60 and 45 (of the one value that there is).
    values = np.array([[10.0, 30], [70, 50], [45, np.nan]])
    figure = figures.heat_map(values, ["t1", "t2"], "Dice in %")
    image = figure.axes[0].images[0]
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), [[70, 45, 10], [50, np.nan, 30]])
    assert image.get_clim() == (0, 100)
    assert figure.axes[0].get_xlabel() == "3 cases, best first"


def test_bars_are_what_each_sequence_adds_in_points_of_dice():
    def entry(mean, low, high):
        return {"mean": mean, "low": low, "high": high}

    names = {"flair": 0.2, "t1": 0.01, "t1c": -0.05, "t2": 0.1}
    value = {
        "WT": {"sequences": {name: entry(mean, mean - 0.01, mean + 0.02) for name, mean in names.items()}},
        "ET": {"sequences": {name: entry(2 * mean, None, None) for name, mean in names.items()}},
    }
    axes = figures.sequence_values(value).axes[0]
    bars = sorted(axes.patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == pytest.approx([20, 1, -5, 10, 40, 2, -10, 20])
    # Bars are 0.2 apart around the region's number: -0.3, -0.1, 0.1, 0.3.
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert middles == pytest.approx([-0.3, -0.1, 0.1, 0.3, 0.7, 0.9, 1.1, 1.3])
    order = (Modality.FLAIR, Modality.T1, Modality.T1C, Modality.T2)
    assert [to_hex(bar.get_facecolor()) for bar in bars] == 2 * [figures.COLOURS[one] for one in order]
    ends = [line.get_ydata() for line in axes.lines if line.get_linewidth() == 1]
    np.testing.assert_allclose(ends, [[19, 22], [0, 3], [-6, -3], [9, 12]])  # none for ET
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["FLAIR", "T1", "T1c", "T2"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["WT", "ET"]


def test_a_reliability_curve_is_the_observed_share_over_the_mean_probability():
    # The third bin has 99 voxels, too few to be drawn. 50 / 200 = 0.25, 20 / 200 = 0.1; 90 / 100 and 80 / 100.
    bins = {"voxels": [200, 100, 99], "predicted": [50, 90, 97], "observed": [20, 80, 9]}
    axes = figures.reliability({"t1c": bins, "t1+t2": bins, "all": bins}).axes[0]
    diagonal, single, pair, every = axes.lines
    assert [list(diagonal.get_xdata()), list(diagonal.get_ydata())] == [[0, 1], [0, 1]]
    for line in (single, pair, every):
        assert list(line.get_xdata()) == [0.25, 0.9]
        assert list(line.get_ydata()) == [0.1, 0.8]
    assert (single.get_color(), every.get_color()) == (figures.COLOURS[Modality.T1C], figures.INK)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["T1c", "all four"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted probability", "share that belongs to the region")

"""One table in three forms: CSV with full numbers, LaTeX, and text for a terminal."""

import pytest

from glimpseg.results.tables import MISSING, Cell, Table, dot_titles, dots, no_dots

TABLE = Table(
    name="t",
    title="Dice & more",
    columns=["FLAIR", "model", "WT", "cases"],
    rows=[
        [
            Cell("●", 1, dot=True),
            Cell("unet_1"),
            Cell("82.5", 82.4512, "80.1 to 84.9", {"low": 80.123, "high": 84.9}, "#aabbcc"),
            Cell("4", 4),
        ],
        [Cell("○", 0, dot=False), Cell("rfnet"), MISSING, Cell("3", 3)],
    ],
    footer=[Cell(""), Cell("mean"), Cell("−0.5", -0.5, "<0.1", {"high": None, "p": 0.05}), Cell("")],
    note="50 % of 2\nlines",
)


def test_csv_holds_full_numbers_and_gives_small_ones_columns_of_their_own():
    # The parts of a column are those of any of its rows, in the order in which they first occur: low, high, p.
    assert TABLE.as_csv == (
        "FLAIR,model,WT,WT low,WT high,WT p,cases\n"
        "1,unet_1,82.4512,80.123,84.9,,4\n"
        "0,rfnet,,,,,3\n"
        ",mean,-0.5,,,0.05,\n"
    )  # fmt: skip


def test_latex_is_a_tabular_whose_numbers_stand_right_words_left_and_dots_in_the_middle():
    assert TABLE.as_latex == "\n".join(
        [
            "% Dice & more. 50 % of 2 lines",
            r"\begin{tabular}{clrr}",
            r"\toprule",
            r"FLAIR & model & WT & cases \\",
            r"\midrule",
            r"$\bullet$ & unet\_1 & 82.5 {\scriptsize 80.1 to 84.9} & 4 \\",
            r"$\circ$ & rfnet & -- & 3 \\",
            r"\midrule",
            r" & mean & $-$0.5 {\scriptsize $<$0.1} &  \\",
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def test_text_has_columns_as_wide_as_their_widest_entry_without_small_numbers():
    assert TABLE.as_text.split("\n") == [
        "FLAIR  model   WT cases",
        "    ● unet_1 82.5     4",
        "    ○  rfnet    –     3",
        "        mean −0.5      ",
    ]


def test_without_a_footer_there_is_no_last_row():
    table = Table("t", "Title", ["a", "b"], [[Cell("1", 1), Cell("x")]], note="Note")
    assert table.as_csv == "a,b\n1,x\n"
    assert table.as_text == "a b\n1 x"
    assert table.as_latex.split("\n") == [
        "% Title. Note",
        r"\begin{tabular}{rl}",
        r"\toprule",
        r"a & b \\",
        r"\midrule",
        r"1 & x \\",
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    assert len(table.lines) == 1


@pytest.mark.parametrize(
    ("character", "latex"),
    [
        ("%", r"\%"), ("&", r"\&"), ("_", r"\_"), ("#", r"\#"), ("$", r"\$"), ("{", r"\{"), ("}", r"\}"),
        ("−", "$-$"), ("–", "--"), ("<", "$<$"), ("†", r"$\dagger$"), ("\u00a0", "~"),
    ],
)  # fmt: skip
def test_latex_shows_every_special_character(character, latex):
    # In a heading, in an entry and in small type.
    text = f"a{character}b"
    table = Table("t", "T", [text], [[Cell(text, 1, text)]])
    escaped = f"a{latex}b"
    assert table.as_latex.split("\n")[3:6] == [
        rf"{escaped} \\", r"\midrule", rf"{escaped} {{\scriptsize {escaped}}} \\",
    ]  # fmt: skip


def test_a_column_with_one_number_stands_right():
    table = Table("t", "T", ["a", "b"], [[Cell("x"), Cell("x")], [Cell("1", 1), Cell("x", "y")]])
    assert r"\begin{tabular}{rl}" in table.as_latex


def test_a_cell_without_a_value_is_its_text_in_csv_and_an_empty_value_is_nothing():
    table = Table("t", "T", ["a"], [[Cell("word")], [Cell("–", "")], [Cell("0.0", 0.0)], [Cell("shown", "held")]])
    assert table.as_csv == 'a\nword\n""\n0.0\nheld\n'


def test_dots_stand_in_the_columns_of_the_fields_tables():
    assert dot_titles() == ["FLAIR", "T1", "T1c", "T2"]
    assert [(cell.text, cell.value, cell.dot) for cell in dots("t1c+flair")] == [
        ("●", 1, True),
        ("○", 0, False),
        ("●", 1, True),
        ("○", 0, False),
    ]
    assert [cell.text for cell in dots("t1")] == ["○", "●", "○", "○"]


def test_a_word_takes_the_place_of_four_dots():
    assert [cell.text for cell in no_dots("mean")] == ["", "", "", "mean"]
    assert all(cell.dot is None for cell in no_dots("mean"))

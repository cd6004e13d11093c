"""Archives are unpacked into a private folder that goes away, and nothing in them reaches any other place."""

import gzip
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile

import numpy as np
import pytest

from glimpseg.data import unpack
from glimpseg.data.unpack import unpacked
from glimpseg.errors import InputError, OutputError

FILES = {"S1/S1-t1c.nii.gz": b"one", "S1/S1-t2f.nii.gz": b"two", "S2/deeper/t1.nii": b"three"}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Folder for temporary folders; it must be empty at the end."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.iterdir())


def make_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make(path, files):
    return (
        make_zip(path, files)
        if path.suffix == ".zip"
        else make_tar(path, files, "w" if path.suffix == ".tar" else "w:gz")
    )


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outside(tmp_path):
    """Files beside the archive and the (checked) scratch folder."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("scratch",))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "A.ZIP", "A.TAR.GZ"])
def test_the_files_of_an_archive_are_there_while_the_block_lasts(tmp_path, name):
    path = make(tmp_path / name.lower(), FILES).rename(tmp_path / name)
    with unpacked(path) as folder:
        assert tree(folder) == FILES
    assert not folder.exists()


def test_a_folder_is_used_as_it_is_and_stays(tmp_path):
    (tmp_path / "study").mkdir()
    with unpacked(tmp_path / "study") as folder:
        assert folder == tmp_path / "study"
    assert folder.is_dir()


def test_nobody_else_can_read_what_was_unpacked(tmp_path):
    with unpacked(make_zip(tmp_path / "a.zip", FILES)) as folder:
        modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
        folders = {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")] if path.is_dir()}
    assert modes == {0o600}
    assert folders == {0o700}


def test_an_error_in_the_block_removes_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), unpacked(make_zip(tmp_path / "a.zip", FILES)):
        raise ZeroDivisionError


HOSTILE = [
    "../evil.nii", "S1/../../evil.nii", "..\\evil.nii", "S1\\..\\..\\evil.nii", "/evil.nii", "\\evil.nii",
    "//server/share/evil.nii", "\\\\server\\share\\evil.nii", "C:\\evil.nii", "c:evil.nii", "S1/..",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_out_is_refused(tmp_path, kind, name):
    path = make(tmp_path / f"a.{kind}", {"first.nii": b"x", name: b"evil"})
    with pytest.raises(InputError, match=r"leads out of the archive|holds no files"), unpacked(path):
        pass
    assert outside(tmp_path) == [path.name]


def test_a_nul_in_a_name_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"aXb.nii": b"x"})
    path.write_bytes(path.read_bytes().replace(b"aXb.nii", b"a\0b.nii"))
    with pytest.raises(InputError, match="NUL"), unpacked(path):
        pass


def test_links_and_devices_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("null", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        # The trick that leads tarfile's own `extract` out: a file below a link.
        member = tarfile.TarInfo("link/evil.nii")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with unpacked(path) as folder:
        assert tree(folder) == {"link/evil.nii": b"evil"}
        assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert "4 links, devices" in caplog.text


def test_a_link_in_a_zip_is_left_out(tmp_path, caplog):
    member = zipfile.ZipInfo("link")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
        archive.writestr("t1.nii", b"x")
    with unpacked(tmp_path / "a.zip") as folder:
        assert tree(folder) == {"t1.nii": b"x"}
    assert "1 links" in caplog.text


def test_names_are_made_of_harmless_letters(tmp_path):
    files = {
        "Müller, A/t1;rm -rf.nii.gz": b"1",
        "con.nii": b"2",
        "ends. ": b"3",
        "\x07bell": b"4",
        f"{'x' * 300}.nii.gz": b"5",
    }
    with unpacked(make_zip(tmp_path / "a.zip", files)) as folder:
        found = tree(folder)
    assert set(found) == {"Müller_ A/t1_rm -rf.nii.gz", "_con.nii", "ends", "_bell", f"{'x' * 113}.nii.gz"}


def test_folders_that_differ_only_in_what_is_replaced_stay_apart(tmp_path):
    with unpacked(
        make_zip(tmp_path / "a.zip", {"ab:1/t1.nii": b"1", "ab?1/t1.nii": b"2", "ab?1/t2.nii": b"3"})
    ) as folder:
        found = tree(folder)
    assert found == {"ab_1/t1.nii": b"1", "2_ab_1/t1.nii": b"2", "2_ab_1/t2.nii": b"3"}


def test_what_macos_adds_is_left_out(tmp_path):
    files = {"S1/t1.nii": b"1", "__MACOSX/S1/._t1.nii": b"2", "S1/._t1.nii": b"3", "S1/.DS_Store": b"4"}
    with unpacked(make_zip(tmp_path / "a.zip", files)) as folder:
        assert tree(folder) == {"S1/t1.nii": b"1"}


def test_archives_inside_are_not_opened(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", FILES).read_bytes()
    with unpacked(make_zip(tmp_path / "a.zip", {"inner.zip": inner})) as folder:
        assert tree(folder) == {"inner.zip": inner}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_one_name_twice_is_refused(tmp_path, kind):
    path = make(tmp_path / f"a.{kind}", {"a/t1.nii": b"1", "./a//t1.nii": b"2"})
    with pytest.raises(InputError, match="name of an earlier one"), unpacked(path):
        pass


@pytest.mark.parametrize("files", [{"a": b"1", "a/b": b"2"}, {"a": b"1", "a/b/c": b"2"}])
def test_a_file_that_is_also_a_folder_is_refused(tmp_path, files):
    with pytest.raises(InputError, match="itself a file"), unpacked(make_zip(tmp_path / "a.zip", files)):
        pass


# Too much


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_bomb_is_refused_by_its_ratio(tmp_path, kind):
    with (
        pytest.raises(InputError, match=r"grows (to|beyond)"),
        unpacked(make(tmp_path / f"a.{kind}", {"a": bytes(64 << 20)})),
    ):
        pass


def test_a_bomb_that_lies_of_its_size_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a": bytes(8 << 20)})
    content = bytearray(path.read_bytes())
    true = (8 << 20).to_bytes(4, "little")
    assert content.count(true) == 2  # in the member's header and in the directory
    path.write_bytes(content.replace(true, (100).to_bytes(4, "little")))
    with pytest.raises(InputError, match="damaged"), unpacked(path):
        pass


def test_a_stream_is_counted_while_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MAXIMAL_BYTES", 1000)
    rng = np.random.default_rng(0)
    path = make_zip(tmp_path / "a.zip", {"a": rng.bytes(600), "b": rng.bytes(600)})
    monkeypatch.setattr(unpack._Receiver, "check_declared", lambda *_: None)
    with pytest.raises(InputError, match="grows to 1,200 bytes"), unpacked(path):
        pass


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_more_than_the_limit_is_refused_as_declared(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(unpack, "MAXIMAL_BYTES", 5)
    with pytest.raises(InputError, match="at most"), unpacked(make(tmp_path / f"a.{kind}", FILES)):
        pass


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_too_many_members_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(unpack, "MAXIMAL_MEMBERS", 2)
    with pytest.raises(InputError, match="more than 2 members"), unpacked(make(tmp_path / f"a.{kind}", FILES)):
        pass


def test_overlapping_members_do_not_multiply(tmp_path):
    """As in the bombs of D. Fifield: many entries of the directory name one deflated body."""
    path = make_zip(tmp_path / "a.zip", {"a": bytes(1 << 20)})
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    many = b"".join(content[start:end].replace(b"a", chr(97 + n).encode()) for n in range(26)) * 30
    tail = bytearray(content[end:])
    tail[8:12] = (780).to_bytes(2, "little") * 2
    tail[12:16] = len(many).to_bytes(4, "little")
    path.write_bytes(content[:start] + many + tail)
    with pytest.raises(InputError), unpacked(path):
        pass


def test_a_header_of_a_gigabyte_is_refused_unread(tmp_path):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as stream:
        stream.write(member.tobuf(tarfile.USTAR_FORMAT))
        stream.write(bytes(64 << 20))
    with pytest.raises(InputError, match="one of its headers claims 1,073,7"), unpacked(tmp_path / "a.tar.gz"):
        pass


def test_headers_upon_headers_are_refused(tmp_path):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type = tarfile.XHDTYPE
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024))
    with pytest.raises(InputError, match="cannot be unpacked"), unpacked(tmp_path / "a.tar"):
        pass


# Damaged


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, name, share):
    rng = np.random.default_rng(0)
    path = make(tmp_path / name, {f"S{n}/t1.nii": rng.bytes(40_000) for n in range(4)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=r"a\.(zip|tar)"), unpacked(path):
        pass


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    path = make_tar(tmp_path / "a.tar", {"a.nii": bytes(512), "b.nii": bytes(512)})
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(InputError, match="mark of its end"), unpacked(path):
        pass


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_flipped_byte_is_noticed_or_harmless(tmp_path, kind, seed):
    rng = np.random.default_rng(seed)
    files = {f"S{n}/t1.nii": rng.bytes(300) for n in range(3)}
    path = make(tmp_path / f"a.{kind}", files)
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    try:
        with unpacked(path) as folder:
            assert set(tree(folder).values()) <= set(files.values())  # names and times have no checksum in a zip
    except InputError:
        pass


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.rar", "gone.zip"])
def test_what_is_no_archive_is_refused(tmp_path, name):
    if name != "gone.zip":
        (tmp_path / name).write_text("hello")
    with pytest.raises(InputError, match=name.replace(".", r"\.")), unpacked(tmp_path / name):
        pass


def test_an_archive_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no files"), unpacked(make_zip(tmp_path / "a.zip", {})):
        pass


def test_an_encrypted_zip_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.nii": b"secret"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"), unpacked(path):
        pass


def test_an_odd_method_of_packing_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match="packed by method 14"),
        unpacked(make_zip(tmp_path / "a.zip", {"a": b"x" * 99}, zipfile.ZIP_LZMA)),
    ):
        pass


def test_a_comment_does_not_disturb(tmp_path):
    path = make_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"from the archive"
    with unpacked(path) as folder:
        assert tree(folder) == FILES


# The place


def test_a_disk_that_refuses_is_an_output_error(tmp_path, monkeypatch):
    def full(file, chunk):
        raise unpack._not_written(OSError(28, "No space left on device"))

    monkeypatch.setattr(unpack, "_write", full)
    with pytest.raises(OutputError, match="No space left"), unpacked(make_zip(tmp_path / "a.zip", FILES)):
        pass


def test_sigterm_removes_what_was_unpacked(tmp_path, scratch):
    path = make_zip(tmp_path / "a.zip", FILES)
    code = textwrap.dedent(f"""
        import pathlib, time
        from glimpseg.data.unpack import unpacked
        with unpacked(pathlib.Path({str(path)!r})) as folder:
            print(folder, flush=True)
            for _ in range(600):  # a signal just before a sleep is seen after it
                time.sleep(0.1)
    """)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        folder = process.stdout.readline().strip()
        assert os.path.exists(f"{folder}/S1/S1-t1c.nii.gz")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert not os.path.exists(folder)


def test_a_disk_that_takes_no_more_files_is_not_called_a_damaged_archive(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpack._Receiver, "_new_file", refuse)
    with pytest.raises(OutputError, match="TMPDIR"), unpacked(make_zip(tmp_path / "a.zip", FILES)):
        pass

"""Files that are whole or not there, and errors that say what to do: full disks,
numbers where paths belong."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.pipelines.clip_features import store_summaries
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import quit_on_user_errors, start_experiment
from encodecmae_sb.utils.files import check_path, whole_file, write_csv, write_text

ROOT = Path(__file__).parent.parent


# Whole or not there


def test_scratch_names_are_made_in_one_place():
    sources = [*ROOT.glob("encodecmae_sb/**/*.py"), *ROOT.glob("recipes/*.py")]
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in sources
        if "os.replace" in path.read_text(encoding="utf-8")
    ]
    assert elsewhere == ["encodecmae_sb/utils/files.py"]


def test_two_that_write_one_file(tmp_path):
    path = tmp_path / "a"
    with whole_file(path) as first:
        first.write_text("first")
        with whole_file(path) as second:
            assert not path.exists()
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"

    def stops():
        with whole_file(path) as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stops()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = (
        "import os, sys, time\n"
        "from encodecmae_sb.utils.files import whole_file\n"
        "with whole_file(sys.argv[1]) as scratch:\n"
        "    scratch.write_text('half')\n"
        "    print(scratch, flush=True)\n"
        "    time.sleep(60)\n"
    )
    mine = tmp_path / "song.mp3.part"  # of someone else's download
    mine.touch()
    arguments = [sys.executable, "-c", code, tmp_path / "a"]
    day = 24 * 3600
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        scratch = Path(process.stdout.readline().strip())
        again = [sys.executable, "-c", "import sys\n" + WRITE, tmp_path / "b"]
        try:
            os.utime(scratch, (time.time() - 2 * day,) * 2)
            subprocess.run(again, check=True)
            assert scratch.exists()  # the process that writes it is alive
        finally:
            process.send_signal(signal.SIGKILL)
    os.utime(scratch, (time.time() - day + 600,) * 2)
    subprocess.run(again, check=True)
    assert scratch.exists()  # it may be of a process on another machine
    os.utime(scratch, (time.time() - day - 600,) * 2)
    subprocess.run(again, check=True)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "b", mine]


WRITE = """\
from encodecmae_sb.utils.files import write_text
write_text(sys.argv[1], 'whole')
"""


def test_a_long_name(tmp_path):
    path = tmp_path / ("ü" * 120 + ".npy")
    write_text(path, "whole")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_need_not_outlast_a_power_cut(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for sync in (False, True):
        with whole_file(tmp_path / "a", sync=sync) as scratch:
            scratch.write_text(str(sync))
        assert (tmp_path / "a").read_text() == str(sync)
        assert len(synced) == sync


def test_csv_files_are_whole_and_have_a_header(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, [], ["path", "reason"])
    assert path.read_bytes() == b"path,reason\r\n"
    rows = [{"path": 'a"b,c', "reason": "ü\n"}, {"reason": 0.1, "path": None}]
    write_csv(path, rows, ["path", "reason"])
    whole = path.read_bytes()
    assert whole == 'path,reason\r\n"a""b,c","ü\n"\r\n,0.1\r\n'.encode()
    write_csv(path, rows)
    assert path.read_bytes() == whole

    def stops():
        yield rows[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(path, stops())
    assert path.read_bytes() == whole


class FakeClassifier:
    """Gives a clip's mean, and calls something before each batch."""

    head = SimpleNamespace(keeps_frames=False)

    def __init__(self, before):
        self.before = before

    def eval(self):
        pass

    def summarise(self, wavs, lens):
        self.before()
        # As wide as what a file object writes at once.
        return wavs.mean(1)[:, None, None].expand(-1, 1, 4096), torch.ones(
            len(wavs), dtype=torch.int64
        )


def test_features_that_two_runs_store_at_once(tmp_path):
    clips = []
    for i in range(4):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, torch.full((1000,), 0.1 * (i + 1)).numpy(), 24000)
        clips.append(Clip(str(i), str(path), ("x",), "1", 1000 / 24000))
    stored, opened, finished = tmp_path / "f.bin", threading.Event(), threading.Event()

    def store(before):
        return store_summaries(FakeClassifier(before), clips, stored, 1, 0, "cpu", True)

    def wait():
        opened.set()
        finished.wait(20)

    other = threading.Thread(target=store, args=(wait,))
    batches = []

    def start_other():
        batches.append(1)
        if len(batches) == 4:
            other.start()
            assert opened.wait(20)

    try:
        values = store(start_other)
        means = [float(values[clip.id][0, 0]) for clip in clips]
        assert means == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-4)
    finally:
        finished.set()
        other.join()


# A full disk


def of_torch():
    torch.save({"a": torch.zeros(100000)}, "/dev/full")


def of_a_worker():
    raise OSError(
        "Caught OSError in DataLoader worker process 0.\n[Errno 28] No space "
        "left on device: 'a'"
    )


def of_numpy():
    raise OSError("100000 requested and 8176 written")


def over_quota():
    raise OSError(errno.EDQUOT, "Disk quota exceeded", "results/a.npy")


def wrapped():
    try:
        Path("/dev/full").write_text("a" * 100000)
    except OSError as error:
        raise RuntimeError("something else") from error


@pytest.mark.parametrize(
    "write", [of_torch, of_a_worker, of_numpy, over_quota, wrapped]
)
def test_a_full_disk_says_what_to_do(write):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full to write to")
    with pytest.raises(SystemExit) as caught, quit_on_user_errors():
        write()
    text = str(caught.value)
    assert "disk is full" in text
    assert "the same command again" in text
    if write is over_quota:
        assert "results/a.npy" in text


@pytest.mark.parametrize("error", [RuntimeError("of a bug"), PermissionError(13, "no")])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)), quit_on_user_errors():
        raise error


# What is no path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data_folder", "2024"], "data_folder=2024: a path or a list of paths"),
        (["--data_folder", "[a, 2024]"], "data_folder=['a', 2024]: a path or a list"),
        (["--data_folder", "0"], "data_folder=0: a path"),
        (["--data_folder", "[]"], "data_folder=[]: a path"),
        (["--data_folder", "no"], "data_folder=False: a path"),
        (
            ["--codes_folder", "7"],
            "codes_folder=7: a path is allowed, not a number",
        ),
        (["--codec", "3"], "codec=3: a path"),
        (["--output_folder", "7"], "output_folder=7: a path"),
        (["--save_folder", "7"], "save_folder=7: a path"),
        (["--output_folder", "null"], "output_folder=None: a path"),
    ],
)
def test_what_is_no_path(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--output_folder" not in arguments:
        arguments = [*arguments, "--output_folder", "out"]
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        start_experiment([str(ROOT / "hparams/mini.yaml"), *arguments])
    advice = r"--\w+ FOLDER|write \./ before its name"
    assert re.search(advice, str(caught.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [8, 20.5, False])  # 8 was typed as 010
def test_advice_on_a_list_of_paths_keeps_the_others(bad):
    with pytest.raises(UserError) as caught:
        check_path("data_folder", ["/data/a", bad], several=True)
    advice = str(caught.value).partition(": a path")[2]
    assert "in the list write ./" in advice
    assert not re.search(r"--data_folder \./|\d", advice)


def test_a_number_may_be_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("./2024", "'2024'"):
        arguments = ["--data_folder", given, "--output_folder", "out", "--dim", "48"]
        hparams, *_ = start_experiment([str(ROOT / "hparams/mini.yaml"), *arguments])
        assert Path(hparams["data_folder"]) == Path("2024")


def test_a_recipe_that_tests_nothing_refuses_test_only(tmp_path):
    arguments = ["--test_only", "--output_folder", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--test_only.*leave it out"):
        start_experiment([str(ROOT / "hparams/codec_mini.yaml"), *arguments])

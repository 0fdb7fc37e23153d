"""Reports: what the page says, that it is safe, and what it does in a browser."""

import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
from commands import command, run_recipe

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.commands.report import main
from encodecmae_sb.evaluation.report_figures import charts, figures
from encodecmae_sb.pipelines.report import make_page
from encodecmae_sb.pipelines.report_clips import load_model, measure_clips
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv

EVIL = "<img src=x onerror=alert(1)>\"'é</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny pretraining on two corpora; a name in it tries to break the page."""
    home = tmp_path_factory.mktemp("report")
    for corpus, first in (("speech", 0), ("more", 20)):
        for part, count in (("train", 8), ("dev", 5)):
            folder = home / corpus / part
            folder.mkdir(parents=True)
            paths = sorted((speech_folder() / part).rglob("*.flac"))[first:]
            for i, path in enumerate(paths[:count]):
                name = f"{EVIL.replace('/', '')}.flac" if i == 2 else path.name
                shutil.copy(path, folder / name)
    output = home / "run"
    data = f"[{home / 'speech'}, {home / 'more'}]"
    options = {"data_folder": data, "codec": "bundled", "precision": "fp32"}
    options |= {"training_steps": 4, "valid_interval": 2, "store_targets": "auto"}
    run_recipe("pretrain", *command(output, **options)[2:], "--noprogressbar")
    return output


@pytest.fixture(scope="module")
def html(finished):
    return make_page(finished, device="cpu", quiet=True)


@pytest.fixture
def copy(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder


def wait_until(page, expression):
    """Asks again and again. Playwright's own way is forbidden by the page's policy."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


class Tags(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def points_of(html):
    text = re.search(r'(?s)id="map-data">(.*?)</script>', html)[1]
    return json.loads(text)["points"]


def test_nothing_is_loaded_from_elsewhere(html):
    for tag, attributes in Tags(html).found:
        for name in ("src", "href", "poster", "action", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base")
    assert "@import" not in html
    assert "url(" not in html
    assert len(html.encode()) < 10e6


def test_names_cannot_break_the_page(html):
    tags = Tags(html).found
    assert not any("onerror" in attributes for _, attributes in tags)
    assert "onerror=alert" in html  # the name is there, escaped
    assert "<img src=x" not in html
    assert sum(tag == "script" for tag, _ in tags) == 2  # the map's data, the script
    assert any("onerror" in point["name"] for point in points_of(html))


def test_figures_are_those_of_the_run(finished, html):
    metrics = json.loads((finished / "metrics.json").read_text())
    text = re.sub(r"<[^>]+>", " ", html)
    for prefix in ("", "speech/", "more/"):
        for q in range(1, 9):
            row = rf"\b{q}\s+"
            for name, form, scale in (
                ("masked_ce", ".2f", 1),
                ("unigram_ce", ".2f", 1),
                ("masked_accuracy", ".1f", 100),
            ):
                value = metrics.get(f"{prefix}{name}_{q}", math.nan)
                shown = "–" if math.isnan(value) else f"{scale * value:{form}}"
                row += rf"{re.escape(shown)}\s+"
            assert re.search(row, text), row
    assert "6.93 nats" in text  # chance


MONITORS = {
    "Effective rank of the frames": ("effective_rank", 1, 3),
    "Share of variance by file": ("file_variance", 100, 3),
    "Codes predicted": ("codes_predicted_8", 100, 9),  # with what occurs
    "Agreement with words": ("utterance_word_agreement", 1, 3),
}


def test_the_curves_have_the_monitors(finished, html):
    metrics = json.loads((finished / "metrics.json").read_text())
    row = {
        **metrics,
        "utterance_word_agreement": 0.1,
        "more/utterance_word_agreement": 0,
    }
    row["speech/utterance_word_agreement"] = -0.5
    found = {each["title"]: each for each in charts([row], ["speech", "more"])}
    for title, (key, scale, lines) in MONITORS.items():
        ends = [line["dots"][-1][-1] for line in found[title]["lines"]]
        assert len(ends) == lines, title
        assert f"{scale * row[key]:.4g}" in ends
        # These files have no transcripts.
        assert (f">{title}" in html) == (key in metrics), title
    without = {k: v for k, v in row.items() if k.split("/")[-1][:6] != "codes_"}
    assert len(charts([without], [])) == 3


def test_clips_are_measured_as_in_validation(finished):
    identity = json.loads((finished / "save/identity.json").read_text())
    run = load_model(finished, identity)
    clips, notes = measure_clips(run, finished, ["speech", "more"], {}, quiet=True)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert not notes
    hidden = [int(clip.hidden.sum()) for clip in clips]
    mean = sum(c.ce * n for c, n in zip(clips, hidden, strict=True)) / sum(hidden)
    expected = sum(metrics[f"masked_ce_{q}"] for q in range(1, 9)) / 8
    assert mean == pytest.approx(expected, abs=1e-4)


def test_sounds_can_be_decoded(html):
    sounds = [a["src"] for tag, a in Tags(html).found if tag == "audio"]
    assert len(sounds) == 3 * 6
    for uri in [*sounds, *(point["audio"] for point in points_of(html))]:
        kind, _, data = uri.partition(",")
        assert kind == "data:audio/flac;base64"
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == 24000
        assert 0.4 < len(samples) / rate < 0.6


def test_the_same_run_gives_the_same_page(finished, html):
    assert make_page(finished, device="cpu", quiet=True) == html


def test_from_the_shell(copy, tmp_path, capsys):
    page = tmp_path / "elsewhere" / "page.html"
    arguments = [str(copy), "--device", "cpu", "--clips", "2", "--map_clips", "3"]
    assert main([*arguments, "--output", str(page), "--noprogressbar"]) == 0
    assert f"Made {page}" in capsys.readouterr().out
    assert not (copy / "report.html").exists()
    assert len(points_of(page.read_text())) == 3
    with pytest.raises(UserError, match="that is a folder"):
        main([str(copy), "--output", str(tmp_path)])


def test_a_place_that_cannot_be_written(copy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output FILE.html"):
        main([str(copy), "--output", str(tmp_path / "file" / "page.html")])


def test_a_training_that_diverged():
    row = {"masked_ce_1": math.nan, "unigram_ce_1": 3.0, "masked_accuracy_1": 0.0}
    (found,) = figures(row, ["all"], 1024)
    (bar,) = found["rows"]
    assert bar["model"] == "nan"
    assert bar["worse"]
    assert 0 <= bar["model_at"] <= 100


def test_a_run_without_checkpoints(copy):
    for checkpoint in copy.glob("save/CKPT*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match="no checkpoint"):
        make_page(copy, quiet=True)


def test_an_unfinished_run(copy):
    (copy / "metrics.json").unlink()
    before = sorted(copy.rglob("*"))
    html = make_page(copy, device="cpu", clips=1, map_clips=0, quiet=True)
    assert "has not finished" in html
    assert sorted(copy.rglob("*")) == before


def test_files_that_are_gone(copy):
    manifest = copy / "save/more_valid.csv"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("/more/", "/gone/"), encoding="utf-8")
    html = make_page(copy, device="cpu", clips=1, quiet=True)
    assert "No clips of more" in html
    assert {point["corpus"] for point in points_of(html)} == {"speech"}


def test_labels_of_a_file(finished, tmp_path):
    paths = sorted((finished.parent / "speech/dev").iterdir())
    rows = [{"wav": path, "label": "mine"} for path in paths]
    write_csv(tmp_path / "labels.csv", rows)
    options = {"clips": 0, "labels": tmp_path / "labels.csv", "quiet": True}
    points = points_of(make_page(finished, device="cpu", **options))
    assert {p["corpus"] for p in points if p["label"] == "mine"} == {"speech"}
    with pytest.raises(UserError, match="columns wav and label"):
        make_page(finished, labels=finished / "metrics.json", quiet=True)


def test_other_folders(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="pretrain"):
        make_page(tmp_path / "none")
    with pytest.raises(UserError, match="no run that is known"):
        make_page(tmp_path)
    with pytest.raises(UserError, match="that is a pretraining"):
        make_page(finished, [finished])
    (tmp_path / "hyperparams.yaml").write_text("encoders: [a]\nrepeats: 1\n")
    with pytest.raises(UserError, match="has not finished"):
        make_page(tmp_path)


def test_results_of_other_runs(tmp_path):
    """A probe, a classification and a recognition on one page."""
    found = {
        "probe": (
            "encoders: [a]\nrepeats: 1\n",
            {"a<b/knn/accuracy": 0.5, "a<b/knn/accuracy_low": 0.4}
            | {"a<b/knn/accuracy_high": 0.6, "a<b/layer": "last"},
        ),
        "classify": (
            "features: encodecmae\nhead: linear\n",
            {"accuracy": 0.7, "clips": 9, "classes": 3, "folds": 1},
        ),
        "asr": (
            "token_type: char\nhead: x\n",
            {"protocol": "frozen", "head": "linear", "steps": 7}
            | {"test/wer": 61.5, "test/cer": 30.25},
        ),
    }
    for name, (settings, metrics) in found.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "hyperparams.yaml").write_text(settings)
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "asr/wer_test.txt").write_text(
        "a-1, %WER 50.00 [ 1 / 2, 0 ins, 0 del, 1 sub ]\nONE ; TWO\n = ; S\nONE ; TOO\n"
    )
    html = make_page(tmp_path / "asr", [tmp_path / "probe", tmp_path / "classify"])
    for text in ("a&lt;b", "0.400–0.600", "0.700", "61.5", "30.2", "ONE TWO"):
        assert text in html, text
    assert '<span class="wrong">TOO</span>' in html


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS.split()
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, html, tmp_path):
    """The page on a telephone; what went wrong and what was asked for is noted."""
    path = Path(tmp_path / "report.html")
    path.write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.problems, page.asked = [], []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: page.problems.append(dialog.message))
    page.on("request", lambda request: page.asked.append(request.url))
    page.add_init_script(
        "window.played = [];"
        "addEventListener('play', e => played.push(e.target.src), true);"
        "const play = Audio.prototype.play;"
        "HTMLMediaElement.prototype.play = function () {"
        " played.push(this.src); return play.call(this); };"
    )
    page.goto(path.as_uri())
    yield page
    assert page.problems == []
    assert [url for url in page.asked if not url.startswith(("data:", "file:"))] == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_on_a_telephone(opened, scheme):
    opened.emulate_media(color_scheme=scheme)
    wait_until(
        opened, "[...document.querySelectorAll('audio')].every(a => a.readyState > 0)"
    )
    lengths = opened.evaluate(
        "[...document.querySelectorAll('audio')].map(a => a.duration)"
    )
    assert len(lengths) == 18
    assert all(0.4 < seconds < 0.6 for seconds in lengths)
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(18, 20, 23)") == (scheme == "dark")


def test_a_click_on_the_map_plays(opened, html):
    opened.locator(".map .plot").scroll_into_view_if_needed()
    shape = opened.locator(".point path").nth(4).bounding_box()
    middle = shape["x"] + shape["width"] / 2, shape["y"] + shape["height"] / 2
    opened.mouse.click(*middle)
    wait_until(opened, "current.currentTime > 0.05")
    assert opened.evaluate("played.at(-1)") == points_of(html)[4]["audio"]
    assert points_of(html)[4]["name"] in opened.locator(".now").inner_text()


def test_keys_play(opened, html):
    opened.locator(".point").first.focus()
    opened.keyboard.press("Enter")
    assert opened.evaluate("played.at(-1)") == points_of(html)[0]["audio"]
    before = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        opened.keyboard.press(key)
        if (
            opened.evaluate("document.activeElement.getAttribute('aria-label')")
            != before
        ):
            break
    after = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    assert after != before
    opened.keyboard.press("Enter")
    names = {f"Play {point['about']}": point["audio"] for point in points_of(html)}
    assert opened.evaluate("played.at(-1)") == names[after]
    opened.locator(".play").first.focus()
    opened.keyboard.press("Enter")
    assert opened.evaluate("played.at(-1)") == opened.locator(
        "audio"
    ).first.get_attribute("src")

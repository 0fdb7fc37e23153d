"""Makes a page of a run: curves, figures, sounds, a map of clips.

    python recipes/report.py RUN_FOLDER
    python recipes/report.py results/mini/1234 --results results/probe_mini/1234

RUN_FOLDER is what recipes/pretrain.py or self_train.py made; it needs a checkpoint. A
run that goes on is reported as far as it is, and is not disturbed. Folders of
asr_ctc.py, classify.py and probe.py are taken, too, once they have finished, alone or
as --results.

Writes `report.html` to the folder. The page is one file of at most 10 MB, which opens
from disk and loads nothing. The same run gives the same page.
"""

import argparse
from pathlib import Path

from encodecmae_sb.pipelines.report import make_page
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_text


def parse(argv):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", type=Path, help="output folder of a recipe")
    add("--output", type=Path, help="default: RUN/report.html")
    add(
        "--results", nargs="+", default=[], help="folders of probe.py and others to add"
    )
    add("--clips", type=int, default=6, help="the most clips to listen to")
    add("--map_clips", type=int, default=100, help="the most clips on the map")
    add("--layout", default="pca", choices=["pca", "umap"], help="of the map")
    add(
        "--labels",
        type=Path,
        help="CSV with wav and label, as clips.csv of classify.py",
    )
    add("--codec", help="encodec_24khz, bundled or a file; default: the run's")
    add("--device", help="cpu, cuda:0, ...; default: a GPU if any")
    add("--noprogressbar", action="store_true", dest="quiet")
    return parser.parse_args(argv)


def main(argv):
    """Makes the page that the command line names; returns the exit status."""
    args = vars(parse(argv))
    folder = args.pop("run")
    output = args.pop("output") or folder / "report.html"
    if folder.is_dir():
        check_place(output)
    html = make_page(folder, **args)
    write_text(output, html)
    size = len(html.encode("utf-8")) / 1e6
    print(f"Made {output} ({size:.1f} MB). Open it in a browser.")
    return 0


def check_place(output):
    """Makes sure, before any work, that the page can be written."""
    try:
        if output.is_dir():
            raise UserError(f"--output {output}: that is a folder. Give a file.")
        write_text(output.with_name(f".{output.name}.probe"), "")
        output.with_name(f".{output.name}.probe").unlink()
    except OSError as error:
        raise UserError(
            f"Cannot write {output}: {error.strerror}. Give another place: "
            "--output FILE.html"
        ) from error

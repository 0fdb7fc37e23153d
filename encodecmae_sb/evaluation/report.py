"""One page of a run that opens from disk: charts, sounds, spectrograms.

The page loads nothing: pictures and sounds are inside it. `page/` holds its template,
style and script. Jinja escapes everything that comes from the data.
"""

import base64
import io
import math

import numpy as np
import soundfile
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torchaudio.transforms import MelSpectrogram

from encodecmae_sb.utils.grid import SAMPLE_RATE

MAX_BYTES = 10 * 1000 * 1000

# Of a chart, in units of its drawing. A telephone shows it about as large.
_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 44, 10, 24
_LABEL_GAP = 10.5  # between names of lines


def render(page):
    """The page as HTML.

    Arguments
    ---------
    page : dict
        What `page/report.html` shows; `pipelines.report.make_page` makes it.

    Returns
    -------
    str
    """
    environment = Environment(
        loader=PackageLoader("encodecmae_sb.evaluation", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    # The two files are ours: they are put in as they are.
    style, script = (
        Markup(loader.get_source(environment, name)[0])
        for name in ("report.css", "report.js")
    )
    template = environment.get_template("report.html")
    return template.render(page=page, style=style, script=script)


def flac_uri(wav, sample_rate=SAMPLE_RATE):
    """A sound as a data URI.

    FLAC plays in every current browser and loses nothing. A lossy format would add its
    own errors to those of the codec, which the page is there to show. (Ogg Vorbis does
    not play in every Safari, and not every libsndfile writes MP3.)

    Arguments
    ---------
    wav : torch.Tensor
        Samples in [-1, 1], shape [N].
    sample_rate : int

    Returns
    -------
    str

    Example
    -------
    >>> flac_uri(torch.zeros(2400))[:28]
    'data:audio/flac;base64,ZkxhQ'
    """
    buffer = io.BytesIO()
    samples = wav.clamp(-1, 1).cpu().numpy()
    soundfile.write(buffer, samples, sample_rate, "PCM_16", format="FLAC")
    return _data_uri("audio/flac", buffer.getvalue())


def flac_bytes(seconds, sample_rate=SAMPLE_RATE):
    """The most that `flac_uri` can need: FLAC does not get larger than plain samples.

    Example
    -------
    >>> flac_bytes(1.0)
    74667
    """
    return math.ceil(4 / 3 * (2 * seconds * sample_rate + 8000))


def png_uri(path):
    """A PNG file as a data URI."""
    return _data_uri("image/png", path.read_bytes())


def _data_uri(kind, data):
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def spectrogram_uri(wav, loudest, sample_rate=SAMPLE_RATE):
    """A mel spectrogram as a data URI, without axes.

    Arguments
    ---------
    wav : torch.Tensor
        Shape [N].
    loudest : float or None
        The level of the brightest colour, in dB; the darkest is 70 dB below. None: that
        of the sound itself.
    sample_rate : int

    Returns
    -------
    uri : str
    loudest : float
    """
    from matplotlib.image import imsave

    columns = min(512, max(64, len(wav) // 120))
    hop = max(1, len(wav) // columns)
    mel = MelSpectrogram(sample_rate, 1024, hop_length=hop, n_mels=96, norm="slaney")
    levels = 10 * mel(wav.cpu()).clamp(min=1e-10).log10()
    loudest = levels.max().item() if loudest is None else loudest
    buffer = io.BytesIO()
    imsave(
        *(buffer, levels.numpy()),
        format="png",
        cmap="magma",
        vmin=loudest - 70,
        vmax=loudest,
        origin="lower",
        # matplotlib would write its version.
        metadata={"Software": None},
    )
    return _data_uri("image/png", buffer.getvalue()), loudest


def gaps(hidden):
    """Where a mask hides, as percentages of its length.

    Arguments
    ---------
    hidden : torch.Tensor
        bool, shape [T].

    Returns
    -------
    list of (float, float)
        Start and width of each gap.

    Example
    -------
    >>> gaps(torch.tensor([False, True, True, False]))
    [(25.0, 50.0)]
    """
    flags = torch.nn.functional.pad(hidden.int(), (1, 1))
    edges = torch.diff(flags).nonzero().view(-1, 2).tolist()
    scale = 100 / len(hidden)
    return [(round(a * scale, 3), round((b - a) * scale, 3)) for a, b in edges]


def chart(title, unit, lines, about=""):
    """Curves over steps, with what the template needs to draw them.

    Arguments
    ---------
    title, unit : str
    lines : list of dict
        `name`, `xs`, `ys`, `kind` (the name of a CSS class, which gives the colour);
        `dashed` for what the others are compared with; `shade`, from 0 to 1, for lines
        of one kind in an order; `end`, a short name at the line's
        end; `legend`, another name for the legend, "" for none.
    about : str
        A sentence below the title.

    Returns
    -------
    dict
        None if no line has a finite point.
    """
    xs = [x for line in lines for x in line["xs"]]
    ys = [y for line in lines for y in line["ys"] if math.isfinite(y)]
    if not ys:
        return None
    x_ticks, y_ticks = _ticks(0, max(xs), 4), _ticks(min(ys), max(ys), 4)
    top, bottom = max(*y_ticks, *ys), min(*y_ticks, *ys)

    def place(x, y):
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        right = max(max(xs), 1)
        share = (top - y) / (top - bottom) if top > bottom else 0.5
        return round(_LEFT + x / right * width, 1), round(_TOP + share * height, 1)

    drawn = []
    for line in lines:
        pairs = zip(line["xs"], line["ys"], strict=True)
        points = [(x, y) for x, y in pairs if math.isfinite(y)]
        if points:
            dots = [(*place(x, y), f"{x:g}", f"{y:.4g}") for x, y in points]
            drawn.append({"dashed": False, "shade": None, "end": "", "legend": None})
            drawn[-1] |= line
            drawn[-1] |= {"dots": dots, "label_y": dots[-1][1]}
    _spread([line for line in drawn if line["end"]])
    return {
        "title": title,
        "unit": unit,
        "about": about,
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "bottom": _HEIGHT - _BOTTOM,
        "x_ticks": [(place(x, bottom)[0], f"{x:g}") for x in x_ticks if x <= max(xs)],
        "y_ticks": [(place(0, y)[1], f"{y:g}") for y in y_ticks],
        "lines": drawn,
    }


def _ticks(low, high, count):
    from matplotlib.ticker import MaxNLocator

    if high == low:
        high = low + 1
    values = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(value), 10) for value in values]


def _spread(lines):
    """Moves the names at the ends of lines apart."""
    lines = sorted(lines, key=lambda line: line["label_y"])
    for _ in range(50):
        for above, below in zip(lines, lines[1:], strict=False):
            overlap = _LABEL_GAP - (below["label_y"] - above["label_y"])
            if overlap > 0:
                above["label_y"] -= overlap / 2
                below["label_y"] += overlap / 2
    for number, line in enumerate(lines):
        lowest = _HEIGHT - _BOTTOM - _LABEL_GAP * (len(lines) - 1 - number)
        line["label_y"] = round(min(line["label_y"], max(lowest, 8)) + 3, 1)


def principal_axes(vectors):
    """The two directions in which vectors differ most.

    Arguments
    ---------
    vectors : torch.Tensor
        Shape [clips, D].

    Returns
    -------
    places : numpy.ndarray
        float64, shape [clips, 2]. The sign of an axis is such that its largest value is
        positive, so that the same vectors give the same map.
    shares : list of float
        Of the variance, of each axis.

    Example
    -------
    >>> places, shares = principal_axes(torch.tensor([[0.0, 0], [3, 0], [0, 1]]))
    >>> places.shape, round(sum(shares), 6)
    ((3, 2), 1.0)
    """
    centred = vectors.double().numpy()
    centred = centred - centred.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    count = min(2, len(values))
    places[:, :count] = left[:, :count] * values[:count]
    largest = np.abs(places).argmax(0)
    places *= np.where(places[largest, [0, 1]] < 0, -1, 1)
    total = max((values**2).sum(), 1e-30)
    shares = [*(values[:2] ** 2 / total).tolist(), 0.0, 0.0]
    return places, shares[:2]

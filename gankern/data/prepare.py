"""Makes a training set of any folder or zip of images, of CIFAR-10 or of MNIST: one size, RGB, labels kept."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from gankern.data.archives import is_cifar, is_mnist, read_cifar10, read_mnist
from gankern.data.dataset import MIN_RESOLUTION, is_resolution
from gankern.data.decode import BadImage, Header, decode
from gankern.data.labels import Label, label_dim, read_labels
from gankern.data.parallel import Progress, ordered_map
from gankern.data.pyramid import Levels, level_resolutions, reduced
from gankern.data.scan import bad_images, listed, scan
from gankern.data.source import READ_ERRORS, Entry, Source, open_source, spread
from gankern.data.writer import dataset_writer, encode_png, refuse_existing
from gankern.errors import InputError

TRANSFORMS = ("center-crop", "center-crop-wide")


@dataclass
class Report:
    """What `prepare` did. `skipped` holds (name, reason) of bad images; `label_dim` is 0 without labels; `levels` are
    the pyramid's resolutions."""

    out: Path
    resolution: int
    levels: list[int] = field(default_factory=list)
    label_dim: int = 0
    written: int = 0
    conversions: Counter = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.out}: {self.written:,} images at {self.resolution}x{self.resolution}"]
        parts.append(f"labels of {self.label_dim}" if self.label_dim else "no labels")
        if self.levels:
            parts.append(f"pyramid of {self.levels[0]} to {self.levels[-1]} px")
        if self.conversions:
            parts.append("converted " + ", ".join(f"{count:,} {kind}" for kind, count in self.conversions.items()))
        if self.skipped:
            parts.append(f"skipped {len(self.skipped):,} bad: {listed(self.skipped)}")
        return "; ".join(parts)


class _Job(NamedTuple):
    name: str
    load: Callable[[], Image.Image]  # raises BadImage
    label: Label | None
    conversions: tuple[str, ...]


class _Made(NamedTuple):
    png: bytes
    levels: Levels


def prepare(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    resolution: int,
    transform: str | None = None,
    max_images: int | None = None,
    skip_bad: bool = False,
    labels_from_folders: bool = False,
    pyramid: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Writes the layout of the StyleGAN tools to a zip or folder: RGB PNGs of resolution x resolution, and labels.

    `source`: a folder or zip of images, cifar-10-python.tar.gz, or an MNIST idx3-ubyte file. `transform`: None takes
    square images only; "center-crop" cuts out the middle square; "center-crop-wide" the middle 16:9, laid on black.
    Images are resized by Lanczos. `max_images`: so many, evenly spread over the sorted source.
    `labels_from_folders`: each top folder of the source is a class. `pyramid`: all images at 4 px ... resolution/2
    beside them, uncompressed (a third of the size of all images decoded), so that `open_dataset(out, resolution=4)`
    has nothing to decode.
    InputError: wrong options or files, bad images (all listed) unless `skip_bad`, `out` not empty, a full disk. The
    output then stays as it was; it is whole or not there at all.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    _check_options(source, out, resolution, transform, pyramid)
    report = Report(out, resolution, level_resolutions(resolution) if pyramid else [])
    if is_cifar(source) or is_mnist(source):
        if labels_from_folders:
            raise InputError(f"--labels-from-folders: {source} isn't a folder or a zip")
        jobs = _array_jobs(source, max_images)
        place = source
    else:
        opened = open_source(source)
        jobs, report.skipped = _file_jobs(opened, transform, max_images, skip_bad, labels_from_folders, progress)
        place = opened.path
    total = len(jobs) + len(report.skipped)
    report.label_dim = label_dim([job.label for job in jobs if job.label is not None])

    with dataset_writer(out) as writer:
        made = ordered_map(lambda job: (job, _make(job, resolution, transform, pyramid)), jobs)
        for done, (job, image) in enumerate(made, 1):
            if isinstance(image, str):
                report.skipped.append((job.name, image))
            elif skip_bad or not report.skipped:  # else nothing will come of it but the list of bad images
                writer.add(image.png, job.label, image.levels)
                report.conversions.update(job.conversions)
            if progress:
                progress(done, len(jobs))
        report.written = writer.count
        if report.skipped and (not skip_bad or not writer.count):
            raise bad_images(place, report.skipped, total)
    return report


def _check_options(source: Path, out: Path, resolution: int, transform: str | None, pyramid: bool) -> None:
    if not is_resolution(resolution):
        raise InputError(f"--resolution {resolution}: expected a power of two of at least {MIN_RESOLUTION}")
    if transform is not None and transform not in TRANSFORMS:
        raise InputError(f"--transform {transform}: expected {' or '.join(TRANSFORMS)}")
    if pyramid and not level_resolutions(resolution):
        raise InputError(f"--pyramid: images of {resolution}x{resolution} have no lower level")
    refuse_existing(out)
    if source.is_dir() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"--out {out}: lies within the source {source}, expected a place outside of it")


def _file_jobs(
    source: Source,
    transform: str | None,
    max_images: int | None,
    skip_bad: bool,
    labels_from_folders: bool,
    progress: Progress | None,
) -> tuple[list[_Job], list[tuple[str, str]]]:
    labels = _folder_labels(source) if labels_from_folders else read_labels(source)
    found = scan(source, spread(source.entries, max_images), skip_bad=skip_bad, progress=progress)
    if transform is None:
        _refuse_oblong(source, found.good)

    def job(entry: Entry, header: Header) -> _Job:
        label = None if labels is None else labels[entry.name]
        return _Job(entry.name, lambda: _load(source, entry.name), label, header.conversions)

    return [job(*item) for item in found.good], found.bad


def _array_jobs(path: Path, max_images: int | None) -> list[_Job]:
    images, labels = read_cifar10(path) if is_cifar(path) else read_mnist(path)

    def job(index: int) -> _Job:
        label = None if labels is None else int(labels[index])
        return _Job(f"image {index}", lambda: Image.fromarray(images[index]), label, ())

    return [job(index) for index in spread(range(len(images)), max_images)]


def _folder_labels(source: Source) -> dict[str, int]:
    for entry in source.entries:
        if "/" not in entry.name:
            raise InputError(f"--labels-from-folders: {source.path}: {entry.name} lies in no folder")
    folders = sorted({entry.name.partition("/")[0] for entry in source.entries})
    classes = {folder: number for number, folder in enumerate(folders)}
    return {entry.name: classes[entry.name.partition("/")[0]] for entry in source.entries}


def _refuse_oblong(source: Source, items: Sequence[tuple[Entry, Header]]) -> None:
    for entry, header in items:
        if header.width != header.height:
            raise InputError(
                f"{source.path}: {entry.name} is {header.width}x{header.height}, expected square images; "
                f"--transform center-crop or center-crop-wide makes them so"
            )


def _load(source: Source, name: str) -> Image.Image:
    try:
        return decode(source.read(name))
    except READ_ERRORS as error:
        raise BadImage(f"can't be read: {error}") from error


def _make(job: _Job, resolution: int, transform: str | None, pyramid: bool) -> _Made | str:
    """The finished file and its pyramid, or why there is none."""
    try:
        image = job.load()
    except BadImage as error:
        return str(error)
    if transform == "center-crop-wide":
        wide = crop_and_resize(image, resolution, max(1, round(resolution * 9 / 16)))
        image = Image.new("RGB", (resolution, resolution))
        image.paste(wide, (0, (resolution - wide.height) // 2))
    else:
        image = crop_and_resize(image, resolution, resolution)
    return _Made(encode_png(image), reduced(image) if pyramid else {})


def crop_and_resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest middle part of the shape width:height, resized to it."""
    scale = min(image.width / width, image.height / height)
    part_width, part_height = (max(1, round(side * scale)) for side in (width, height))
    left, top = (image.width - part_width) // 2, (image.height - part_height) // 2
    image = image.crop((left, top, left + part_width, top + part_height))
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)

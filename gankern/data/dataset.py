"""A training set: equal square images of a folder or zip, decoded on demand, with their labels."""

import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from gankern.data.decode import DECODE_VERSION, BadImage, Header, decode
from gankern.data.labels import LabelTable, read_labels
from gankern.data.pyramid import CHANNELS, Level, find_level, pixels
from gankern.data.scan import Scan, bad_images, listed, scan
from gankern.data.source import READ_ERRORS, Entry, Source, open_source, spread
from gankern.errors import InputError

MIN_RESOLUTION = 4


class ImageDataset:
    """N RGB images of one power-of-two size. Made by `open_dataset`; small to pickle, safe to use in any process.

    `names`: the files, sorted. `resolution`, `channels` (3), `label_dim` (0 without labels). `name`: of the source.
    `conversions`: how many images need each kind of conversion, such as {"grey": 12}. `skipped`: (name, reason) of
    bad images left out. `identity`: a hash of the files and of how they are read; labels don't enter it.
    """

    channels = CHANNELS

    def __init__(
        self, source: Source, found: Scan, resolution: int, labels: LabelTable | None, level: Level | None = None
    ):
        self.source = source
        self.names = [entry.name for entry, _ in found.good]
        self.resolution = resolution
        self.stored_resolution = found.good[0][1].width
        self.name = source.path.stem
        self.skipped = tuple(found.bad)
        self.conversions = found.conversions()
        if self.stored_resolution != resolution:
            self.conversions["reduced"] = len(self.names)
        self.identity = _identity(source, [entry for entry, _ in found.good], resolution)
        self._labels = labels
        self._level, self._rows = level, None
        if level is not None and len(self) != len(source.entries):
            row_of = {entry.name: row for row, entry in enumerate(source.entries)}
            self._rows = np.array([row_of[name] for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def nbytes(self) -> int:
        """Size of all images decoded."""
        return len(self) * self.channels * self.resolution**2

    @property
    def read_resolution(self) -> int:
        """Side of the picture that is read for each image: the files' own, or `resolution` where that is stored."""
        return self.stored_resolution if self._level is None else self.resolution

    @property
    def stored_array(self) -> np.ndarray | None:
        """All images, uint8 [N, C, R, R], read-only, where the dataset's pyramid has them; None elsewhere."""
        return self._level.array if self._level is not None and self._rows is None else None

    @property
    def label_dim(self) -> int:
        return 0 if self._labels is None else self._labels.dim

    @property
    def labels(self) -> np.ndarray | None:
        """float32 [N, label_dim], one-hot for class numbers; None without labels."""
        return None if self._labels is None else self.label_rows(np.arange(len(self)))

    def label(self, index: int) -> np.ndarray:
        """float32 [label_dim]."""
        return self.label_rows(np.array([index]))[0]

    def label_rows(self, indices: np.ndarray) -> np.ndarray:
        """float32 [len(indices), label_dim]."""
        return np.zeros((len(indices), 0), np.float32) if self._labels is None else self._labels.rows(indices)

    def image(self, index: int) -> np.ndarray:
        """uint8 [C, H, W]. InputError names the file if it can't be decoded."""
        try:
            return self.decode(index)
        except BadImage as error:
            raise self.bad([(self.names[index], str(error))]) from error

    def decode(self, index: int) -> np.ndarray:
        """As `image`, but raises BadImage, for callers that gather all bad files before they complain."""
        try:
            if self._level is not None:
                return np.array(self._level.array[index if self._rows is None else self._rows[index]])
            data = self.source.read(self.names[index])
        except READ_ERRORS as error:
            raise BadImage(f"can't be read: {error}") from error
        picture = decode(data)
        if picture.size != (self.stored_resolution, self.stored_resolution):
            raise BadImage(f"changed size to {picture.width}x{picture.height} since the dataset was opened")
        if self.stored_resolution != self.resolution:
            picture = picture.reduce(self.stored_resolution // self.resolution)
        return pixels(picture)

    def bad(self, bad: Sequence[tuple[str, str]]) -> InputError:
        """The error that lists bad files, given as (name, reason)."""
        return bad_images(self.source.path, bad, len(self))

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.source.path}: {len(self):,} images at {self.resolution}x{self.resolution}"]
        if self.label_dim:
            parts.append(f"labels of {self.label_dim}")
        if self.conversions:
            parts.append("converted " + ", ".join(f"{count:,} {kind}" for kind, count in self.conversions.items()))
        if self.skipped:
            parts.append(f"skipped {len(self.skipped):,} bad: {listed(self.skipped)}")
        return "; ".join(parts)


def open_dataset(
    path: str | os.PathLike,
    *,
    resolution: int | None = None,
    use_labels: bool = False,
    max_images: int | None = None,
    skip_bad: bool = False,
) -> ImageDataset:
    """Opens a folder (with subfolders) or zip of PNG, JPEG or WebP images, all square and of one power-of-two size.

    `resolution`: of the images given out; where it is below the files' own, each is reduced by averaging, or read from
    the pyramid that `prepare` may have stored: the same bytes.
    `max_images`: so many of them, evenly spread over the sorted names. `skip_bad`: leave out what can't be decoded;
    this decodes everything once to find out, without it only headers are read.
    InputError names the first offending file or option.
    """
    source = open_source(path)
    labels = read_labels(source) if use_labels else None
    if use_labels and labels is None:
        raise InputError(f"{source.path}: has no labels, expected a dataset.json with them")
    found = scan(source, spread(source.entries, max_images), skip_bad=skip_bad, thorough=skip_bad)
    stored = _common_size(source, found.good)
    names = [entry.name for entry, _ in found.good]
    table = None if labels is None else LabelTable(labels, names)
    resolution = _resolution(source, stored, resolution)
    level = find_level(source, resolution) if resolution < stored else None
    return ImageDataset(source, found, resolution, table, level)


def is_resolution(value: int) -> bool:
    """Whether a dataset may have it: a power of two, at least 4 (networks need 8)."""
    return value >= MIN_RESOLUTION and value & (value - 1) == 0


def _common_size(source: Source, items: Sequence[tuple[Entry, Header]]) -> int:
    mend = "gankern data prepare --resolution R"
    first, size = items[0][0].name, items[0][1].width
    for entry, header in items:
        if header.width != header.height:
            raise InputError(
                f"{source.path}: {entry.name} is {header.width}x{header.height}, expected square images; "
                f"'{mend} --transform center-crop' makes them so"
            )
        if header.width != size:
            raise InputError(
                f"{source.path}: {entry.name} is {header.width}x{header.height} but {first} is {size}x{size}, "
                f"expected one size; '{mend}' makes them so"
            )
    if not is_resolution(size):
        raise InputError(
            f"{source.path}: {first} is {size}x{size}, expected a power of two of at least {MIN_RESOLUTION}; "
            f"'{mend}' makes them so"
        )
    return size


def _resolution(source: Source, stored: int, wanted: int | None) -> int:
    if wanted is None:
        return stored
    if not is_resolution(wanted):
        raise InputError(f"resolution {wanted}: expected a power of two of at least {MIN_RESOLUTION}")
    if wanted > stored:
        raise InputError(
            f"{source.path}: its images are {stored}x{stored}, smaller than resolution {wanted}; "
            f"'gankern data prepare --resolution {wanted}' enlarges them"
        )
    return wanted


def _identity(source: Source, entries: Sequence[Entry], resolution: int) -> str:
    content = [DECODE_VERSION, source.fingerprint, resolution, entries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

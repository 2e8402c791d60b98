"""Class labels: dataset.json as the StyleGAN tools write it, checked against the files it speaks of."""

import json
import math
from collections.abc import Collection, Sequence

import numpy as np

from gankern.data.source import LABELS_FILE, Source
from gankern.errors import InputError

MAX_CLASSES = 1_000_000

Label = int | list[float]


def read_labels(source: Source) -> dict[str, Label] | None:
    """The labels of a source by image name; None where it has none.

    `{"labels": [["00000/img00000000.png", 3], ...]}`: class numbers from 0, or vectors of numbers of one length.
    InputError: anything else, an image without a label, a label without its image.
    """
    raw = source.read_labels()
    if raw is None:
        return None
    where = f"{source.path}: {LABELS_FILE}"
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise InputError(f'{where}: expected {{"labels": [["name.png", 3], ...]}}')
    pairs = content["labels"]
    if pairs is None:
        return None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise InputError(f"{where}: expected 'labels' to be a list of [name, label] pairs, or null")
    labels = {name.replace("\\", "/"): label for name, label in pairs}
    _check_names(where, labels, {entry.name for entry in source.entries})
    _check_values(where, labels)
    return labels


class LabelTable:
    """Labels of the images of a dataset, in its order; class numbers are expanded to one-hot rows on demand."""

    def __init__(self, labels: dict[str, Label], names: Sequence[str]):
        self._classes = self._vectors = None
        if isinstance(next(iter(labels.values())), int):
            self._classes = np.array([labels[name] for name in names], dtype=np.int64)
        else:
            self._vectors = np.array([labels[name] for name in names], dtype=np.float32)
        self.dim = label_dim(labels.values())  # of all, so that a part of a dataset has the same classes

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """float32 [len(indices), dim]."""
        if self._classes is None:
            return self._vectors[indices]
        rows = np.zeros((len(indices), self.dim), dtype=np.float32)
        rows[np.arange(len(indices)), self._classes[indices]] = 1
        return rows


def label_dim(labels: Collection[Label]) -> int:
    """Number of classes, or length of the vectors; 0 for no labels."""
    if not labels:
        return 0
    first = next(iter(labels))
    return max(labels) + 1 if isinstance(first, int) else len(first)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)


def _check_names(where: str, labels: dict[str, Label], names: set[str]) -> None:
    if missing := sorted(names - labels.keys()):
        raise InputError(f"{where}: no label for {len(missing)} of {len(names)} images, the first is {missing[0]}")
    if unknown := sorted(labels.keys() - names):
        raise InputError(f"{where}: labels {len(unknown)} images that aren't there, the first is {unknown[0]}")


def _check_values(where: str, labels: dict[str, Label]) -> None:
    length = None
    for position, (name, label) in enumerate(labels.items()):
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < MAX_CLASSES:
                raise InputError(f"{where}: {name} has class {label}, expected 0 to {MAX_CLASSES - 1}")
            this = 0
        elif isinstance(label, list) and label and all(_is_number(value) for value in label):
            this = len(label)
        else:
            raise InputError(f"{where}: {name} has label {label!r:.60}, expected a class number or a list of numbers")
        if position and this != length:
            kinds = [f"{n} numbers" if n else "a class number" for n in (length, this)]
            raise InputError(f"{where}: labels differ in kind or length: first {kinds[0]}, but {name} has {kinds[1]}")
        length = this


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""What a file of networks holds, whoever wrote it, and what is said of it."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from gankern.errors import InputError

PARTS = ("G_ema", "G", "D")


@dataclass
class Networks:
    """The networks of a file: those that are trained, G and D, and the moving average that makes the images, G_ema.

    `origin` says what kind of file it was, `notes` what else a person should know; `nimg`: images shown, 0: unknown;
    `options_told`: whether the file holds what weights don't say, minibatch stddev's groups and `conv_clamp`.
    """

    G: nn.Module | None = None
    D: nn.Module | None = None
    G_ema: nn.Module | None = None
    origin: str = ""
    nimg: int = 0
    notes: list[str] = field(default_factory=list)
    options_told: bool = False

    def __post_init__(self):
        for network in self.parts().values():
            network.eval().requires_grad_(False)

    def parts(self) -> dict[str, nn.Module]:
        """Those that are there."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}

    def generator(self, path: Path) -> nn.Module:
        """The one that makes the best images; raises InputError where there is none."""
        found = self.G_ema if self.G_ema is not None else self.G
        if found is None:
            raise InputError(f"{path}: holds no generator")
        return found

    def describe(self) -> str:
        """Several lines: every dimension and option that was inferred."""
        lines = [self.origin + (f", {self.nimg / 1000:g} kimg" if self.nimg else "")]
        for name, network in self.parts().items():
            options = ", ".join(f"{key} {value}" for key, value in network.config.items())
            count = sum(p.numel() for p in network.parameters())
            lines.append(f"  {name}: {type(network).__name__}, {count:,} parameters: {options}")
        return "\n".join(map(printable, lines + [f"  {note}" for note in self.notes]))


def printable(text: str) -> str:
    """In one line, whatever a file's own words hold: nothing that a terminal obeys or can't show."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

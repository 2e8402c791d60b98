"""The short table of a folder of results: python benchmarks/summarise.py OUTDIR."""

import json
import sys
from pathlib import Path

from gankern.bench import train
from gankern.bench.report import Report, summary


def main(folder: Path) -> None:
    for path in sorted(folder.glob("ops_*.json")):
        result = Report.load(path)
        rates = ", ".join(f"{name} {value:.0f}" for name, value in result.rates.items())
        print(f"\n{path.stem}{': ' if rates else ''}{rates}")
        print(summary(result.rows))
        if result.left_out:
            print(f"left out for want of time: {', '.join(result.left_out)}")
    for path in sorted(folder.glob("train_*.json")):
        result = json.loads(path.read_text())
        print(f"\n{path.stem}, batch {result['batch']}")
        print(train.table(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The short table of a folder of results: python benchmarks/summarise.py OUTDIR."""

import json
import sys
from pathlib import Path

from gankern.bench.report import Report, summary


def main(folder: Path) -> None:
    for path in sorted(folder.glob("ops_*.json")):
        result = Report.load(path)
        rates = ", ".join(f"{name} {value:.0f}" for name, value in result.rates.items())
        print(f"\n{path.stem}{': ' if rates else ''}{rates}")
        print(summary(result.rows))
        if result.left_out:
            print(f"left out for want of time: {', '.join(result.left_out)}")
    for path in sorted(folder.glob("phases_*.json")):
        result = json.loads(path.read_text())
        print(f"\n{path.stem}, batch {result['settings']['batch']}")
        for impl, row in result["phases"].items():
            if "failure" in row:
                print(f"{impl:<12} {row['failure']}")
                continue
            times = ", ".join(f"{name} {1000 * row[name]['median']:.1f} ms" for name in ("G", "G+PL", "D", "D+R1"))
            print(f"{impl:<12} {row['s_per_kimg']:.3f} s/kimg ({times})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

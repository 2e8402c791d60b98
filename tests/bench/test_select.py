"""gankern bench select: results in, a table of implementations out."""

import json

from gankern.bench.report import Report, Row
from gankern.bench.select import select

ROW = {
    "op": "bias_act",
    "case": "lrelu 32ch",
    "dtype": "bf16",
    "layout": "nhwc",
    "batch": 8,
    "key": "bfloat16 nhwc 32 4096",
}


def report(*times, gpu="Card", seed=1, **more):
    """times: (provider, mode, ms)."""
    rows = [Row(**ROW | more, provider=provider, mode=mode, ms=ms) for provider, mode, ms in times]
    return Report({"gpu": gpu}, {"seed": seed}, rows=rows)


def chosen(*reports):
    return select(reports).get("Card", {}).get("impl bias_act", {}).get(ROW["key"])


def test_the_faster_over_all_modes_wins():
    times = [
        ("triton", "forward", 1.0),
        ("triton", "backward", 2.0),
        ("cuda", "forward", 1.1),
        ("cuda", "backward", 1.5),
    ]
    assert chosen(report(*times)) == "cuda"
    assert chosen(report(*times[:2], ("cuda", "forward", 1.1), ("cuda", "backward", 1.85))) == "triton"  # by 2 %: noise


def test_only_what_was_timed_with_both_counts():
    assert chosen(report(("triton", "forward", 1.0))) is None
    assert chosen(report(("cuda", "forward", 1.0))) is None
    assert chosen(report(("triton", "forward", 1.0), ("cuda", "forward", None))) is None
    half = [("triton", "forward", 1.0), ("triton", "backward", 9.0), ("cuda", "forward", 0.5)]
    assert chosen(report(*half)) == "cuda"
    assert chosen(report(("triton", "forward", 1.0), ("cuda", "forward", 0.5), gpu="Other")) is None


def test_cases_of_a_class_are_added_up_and_a_newer_time_replaces_an_older():
    old = report(("triton", "forward", 1.0), ("cuda", "forward", 0.5))
    other = report(("triton", "forward", 1.0), ("cuda", "forward", 9.0), case="lrelu 30ch")
    assert chosen(old) == "cuda"
    assert chosen(old, other) == "triton"
    assert chosen(old, report(("cuda", "forward", 2.0), seed=2)) == "triton"


def test_the_command_writes_the_table_and_keeps_what_else_stands_there(cli, refused, tmp_path):
    report(("triton", "forward", 1.0), ("cuda", "forward", 0.5)).save(tmp_path / "ops_card.json")
    report(("triton", "forward", 1.0), ("cuda", "forward", 3.0), seed=0).save(tmp_path / "ops_an_older.json")
    table = tmp_path / "settings.json"
    table.write_text(json.dumps({"Card": {"layer_forward": {"a": 1}}}))
    code, out, _ = cli("bench", "select", tmp_path, "--out", table)
    assert code == 0
    assert f"Card: bias_act [{ROW['key']}] cuda" in out
    assert json.loads(table.read_text()) == {"Card": {"impl bias_act": {ROW["key"]: "cuda"}, "layer_forward": {"a": 1}}}
    report(("triton", "forward", 1.0)).save(tmp_path / "one.json")
    refused("bench", "select", tmp_path / "one.json", "--out", table, words=("no case", "triton and cuda"))
    refused("bench", "select", tmp_path / "none.json", words=("none.json", "no such file"))
    refused("bench", "select", table, "--out", table, words=("not results",))

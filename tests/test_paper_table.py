"""The script that repeats the literature's table runs on the bundled model as on a published checkpoint."""

import sys

from benchmarks import paper_table


def test_it_gives_a_row_for_each_attribute(capsys, monkeypatch):
    options = ["--pairs", "1", "--seeds", "1", "--num-inference-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["paper_table", "testbed:sd1", *options])
    paper_table.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| testbed:sd1")]
    assert [row[1] for row in rows] == ["style", "object", "fact"]
    assert [row[5] for row in rows] == ["8", "6 (v1.5)", "6 (v1.5)"]
    assert all("transformer_blocks.0" in row[3] for row in rows)

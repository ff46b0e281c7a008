"""The tables of the docs that are made of kept results.

python -m benchmarks.tables             (writes each between its `<!-- table: name -->` and `<!-- end -->`)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.joint_search import kept_table, summary
from benchmarks.kept import FOLDER, Kept
from benchmarks.sdxl_edits import CARRIERS, ROLES, TOKENS

DOCS = Path(__file__).parents[1] / "docs"
_TABLE = re.compile(r"(?<=<!-- table: )([\w ]+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
#: How rankings are called, beside their own names.
_NAMES = {
    "IntegratedGradients(kind='gradient', fidelity=0)": '`IntegratedGradients(kind="gradient")`',
    "IntegratedGradients(fidelity=0)": "`IntegratedGradients()`",
    "IntegratedGradients(gradient)": '`IntegratedGradients(kind="gradient")`',
    "IntegratedGradients(integrated)": "`IntegratedGradients()`",
    "MeanDifference(weighted=False)": "`MeanDifference()`",
    "NeuronGradient": "`NeuronGradient()`",
    "NeuronGradient(), 1 pair": "`NeuronGradient()`, on the pair of exact ablation",
    "exact ablation": "`NeuronAblation()`",
}
_TRAINED = ("planted of the first 28", "AUROC", "by size")


def main() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        if (written := with_tables(text)) != text:
            page.write_text(written)


def with_tables(text: str) -> str:
    """A page with all of its tables made anew."""
    return _TABLE.sub(lambda found: f"{found[1]}{found[2]}\n{TABLES[found[1]]()}\n", text)


def constructed() -> str:
    """By ranking: means over models, with the lowest."""
    rows = _rows("neurons", "constructed")
    families = {name: len(each["family"].unique()) for name, each in rows.groupby("ranking")}
    cells = [
        [
            _name(name),
            _range(each["nfe"]),
            f"{len(each)}" + ("" if families[name] == max(families.values()) else f" ({', '.join(each['family'].unique())})"),
            *[f"{each[column].mean():.2f} [{each[column].min():.2f}]" for column in _JUDGED],
        ]
        for name, each in rows.groupby("ranking", sort=False)
    ]
    every = rows[rows["ranking"] == rows["ranking"][0]]
    chance = f"below {np.ceil(100 * 6 / every['neurons'].min()) / 100:.2f}"
    return _markdown(
        ["ranking", "NFE", "models", "towards, of the first", "AUROC", "carrying, of the first by size", "AUROC by size"],
        [*cells, ["chance", "0", f"{len(every)}", chance, "0.50", chance, "0.50"]],
    )


def families() -> str:
    """By family: what the default and integrated gradients find."""
    rows = _rows("neurons", "constructed")
    methods = ["NeuronGradient()", "IntegratedGradients(fidelity=0)"]
    return _markdown(
        ["family", "neurons", *[f"{_name(name)} {what}" for name in methods for what in ("towards", "by size")]],
        [
            [family, f"{each['neurons'].iloc[0]:,}"]
            + [
                f"{mine[column].mean():.2f} [{mine[column].min():.2f}]"
                for mine in (each[each["ranking"] == name] for name in methods)
                for column in ("precision", "precision_by_size")
            ]
            for family, each in rows.groupby("family", sort=False)
        ],
    )


def q_values() -> str:
    """By kind of plant: the share of unplanted neurons among the sure ones, pooled over runs, with what is found of the planted ones."""
    rows = _rows("neurons", "q_values")
    cells = []
    for (kind, layers, samples), each in rows.groupby(["kind", "layers", "samples"], sort=False):
        tests = []
        for name in ("", "_against_zero"):
            found, wrong = each[f"found{name}"].sum(), each[f"wrong{name}"].sum()
            share = f"{wrong / found:.2f}" if found else "none found"
            tests += [f"{wrong:,} of {found:,}: {share}", f"{(found - wrong) / each['planted'].sum():.2f}"]
        cells.append([kind, "all" if layers == "all" else f"layer {layers}", str(samples), str(len(each)), *tests])
    return _markdown(
        ["plants", "among", "samples", "runs", "wrong, of q < 0.05", "finds", "wrong, against 0", "finds, against 0"],
        cells,
    )


def natural() -> str:
    """By ranking and k: the joint effect."""
    rows = _rows("neurons", "natural")
    counts = sorted(rows["count"].unique())
    cells = []
    for name, each in sorted(rows.groupby("ranking", sort=False), key=lambda group: group[0] == "random"):
        means = each.groupby("count")["effect"].mean()
        lows, highs = (each.groupby("count")[side].mean() for side in ("low", "high"))
        agreement = each["rank_correlation"].iloc[0]
        said = [f"{means[k]:.2f}" + ("" if name == "random" else f" [{lows[k]:.2f}, {highs[k]:.2f}]") for k in counts]
        cells.append([_name(name), f"{each['nfe'].iloc[0]:,.0f}", "" if np.isnan(agreement) else f"{agreement:.2f}", *said])
    return _markdown(["ranking", "NFE", "rank correlation with exact", *[f"{count}" for count in counts]], cells)


def trained(question: str, layers: str) -> str:
    """By ranking: planted neurons that are found."""
    rows = _rows("neurons", "trained")
    rows = rows[(rows["question"] == question) & (rows["layers"] == layers)]
    cells = []
    for _, row in rows.iterrows():
        cells.append([_name(row["ranking"]), f"{row['nfe']:,.0f}", *[f"{row[each]:.2f}" for each in _JUDGED[:3]]])
    return _markdown(["ranking", "NFE", *_TRAINED], cells)


def sdxl_edits() -> str:
    """By what carries the concept: the pooled text's share, and the effect of each edit."""
    rows = _rows("sdxl_edits", "edits")
    columns = ["pooled_share", *[f"{name}, {tokens}" for name in ROLES for tokens in TOKENS]]
    heads = ["carried by the pooled text", *[f"{name}, {_TOKENS[tokens]}" for name in ROLES for tokens in TOKENS]]
    return _markdown(
        ["the concept passes through", *heads],
        [
            [said, *[f"{_number(each[name].mean())} [{_number(each[name].min())}, {_number(each[name].max())}]" for name in columns]]
            for plant, said in CARRIERS.items()
            for each in [rows[rows["plant"] == plant]]
        ],
    )


def joint_search() -> str:
    """By depth: how often the search was right, how sure it was, and how many times cheaper than all windows."""
    cells = [
        [str(row.Index), f"{row.plants:.0f}", f"{row.right:.0f}", f"{row.sure:.0f}", f"{row.sure_and_right:.0f}", f"1/{row.least:.1f}"]
        for row in summary(kept_table()).sort_index().itertuples()
    ]
    return _markdown(["blocks", "plants", "right", "given with 95 % or more", "of these right", "NFE, of all windows'"], cells)


def joint_swaps() -> str:
    """By model and method: how often it names the block in which the image reads the concept, and what it credits others with."""
    rows = _rows("joint", "credit")
    cells = []
    for (family, plant, method), each in rows.groupby(["family", "plant", "method"], sort=False):
        spread = {name: "" if each[name].isna().all() else _with_range(each[name].astype(float)) for name in ("block", "relay")}
        most = [_number(each[name].max()) for name in ("others", "apart")]
        hits = f"{each['hit'].sum()}/{len(each)}"
        cells.append([f"{_FAMILIES[family]}, {_PLANTS[plant]}", _METHODS[method], hits, *spread.values(), *most, _range(each["nfe"])])
    return _markdown(
        ["model", "method", "names the block", "the block", "the one before", "any other, at most", "from edge, at most", "NFE"], cells
    )


def _with_range(values: pd.Series) -> str:
    return f"{_number(values.mean())} [{_number(values.min())}, {_number(values.max())}]"


_FAMILIES = {"sd3": "SD3", "flux": "FLUX"}
_PLANTS = {"layer": "`layer`", "relayed": "`relayed`", "unplanted": "no plant"}
_METHODS = {
    "edge": "`LocoGen()`",
    "edge, shared": '`LocoGen(trajectory="shared")`',
    "stream": '`LocoGen(definition="stream")`',
    "edge, auto": '`LocoGen(search="auto")`',
}
_JUDGED = ["precision", "auroc", "precision_by_size", "auroc_by_size"]
_TOKENS = {"subject": "the subject's token", "all": "all tokens"}

TABLES: dict[str, Callable[[], str]] = {
    "constructed": constructed,
    "families": families,
    "q values": q_values,
    "natural": natural,
    "trained style": lambda: trained("style", "12"),
    "trained style all": lambda: trained("style", "all"),
    "trained stipple": lambda: trained("stipple", "12"),
    "sdxl edits": sdxl_edits,
    "joint search": joint_search,
    "joint swaps": joint_swaps,
}


def _rows(name: str, section: str) -> pd.DataFrame:
    return pd.DataFrame(Kept(FOLDER / f"{name}.json")[section])


def _name(ranking: str) -> str:
    return _NAMES.get(ranking, f"`{ranking}`" if ranking.endswith(")") and ranking[0] != "(" else ranking)


def _number(value: float, form: str = ".2f") -> str:
    return "" if pd.isna(value) else format(value, form).replace("-0.00", "0.00")


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _markdown(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    main()

r"""An ablation study as tables for papers and pages of Markdown.

Both hold the same: for every metric (and protocol, for a table never mixes two) each variant's mean and standard
error, its paired difference to the baseline with interval, and what may be read from it; then main effects, costs,
and every cell that failed or is missing. The LaTeX needs ``\usepackage{booktabs}`` and nothing else.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import ablation_words as words
from .ablation_headline import headline
from .comparison import Study

# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown_table(study: Study, comparison: Mapping[str, Any]) -> str:
    """The tables in Markdown, as GitHub reads it."""
    blocks = [f"# {_md(study['name'])}: ablation", _md(words.summary(study)), _md(headline(study, comparison))]
    if comparison["measures"]:
        head, *rows = words.overview(study, comparison)
        blocks += [_md_table(head, rows), _md(words.legend([head, *rows]))]
    blocks += [_md(" ".join(words.explanation(study, comparison)))]
    if study["conditions"]:
        blocks.append(f"**Not equal: {_md('; '.join(study['conditions']))}**")
    for group in words.groups(comparison):
        blocks += [f"## {_md(group.title)}", f"Protocol: {_md(group.protocol)}", _md_table(words.HEAD, group.rows)]
    if not comparison["measures"]:
        blocks.append("No cell has finished: there is nothing to compare.")
    if effects := words.effect_groups(study, comparison):
        blocks.append("## Main effects")
        for group in effects:
            title = f"{_md(group.title)}, protocol {_md(group.protocol)}"
            blocks += [title, _md_table(words.EFFECTS_HEAD, group.rows)]
    blocks += ["## Costs", _md_table(words.COSTS_HEAD, words.costs(study))]
    for title, lines in _lists(study, comparison):
        blocks += [f"## {title}", "\n".join(f"- {_md(line)}" for line in lines)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        [_md(cell) for cell in head],
        [":--", *["--:"] * (len(head) - 2), ":--" if head[-1] == "reading" else "--:"],
    ]
    lines += [[_md(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Text that Markdown shows as it is; an underscore within a word needs no escape."""
    text = re.sub(r"([\\`*|\[\]~$])|((?<!\w)_|_(?!\w))", r"\\\g<0>", " ".join(text.split(" ")))
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").splitlines())


# --- LaTeX --------------------------------------------------------------------------------------------------------

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "{''}",
    "[": "{[}",  # after a line's end it would be an option
    "]": "{]}",
    "*": "{*}",  # so would this
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "…": r"\dots{}",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{NO-BREAK SPACE}": "~",
}
"""Characters that are commands to LaTeX, or that its default fonts lack."""
COLUMNS = len(words.HEAD) - 1
NUMBER = re.compile(r"([+−]?)(\d+(?:\.\d+)?)(?:e([+−]?)0*(\d+))?")


def latex_table(study: Study, comparison: Mapping[str, Any]) -> str:
    """A ``table`` environment for ``booktabs``, with what its numbers are as caption and notes.

    Of the two p it has Holm's; whether the plain one is below 5 % shows in the interval.
    """
    body = []
    for group in words.groups(comparison):
        body += [*_spans(group.title, group.protocol), *(_tex_row(_without_p(row)) for row in group.rows), r"\midrule"]
    if not comparison["measures"]:
        body += [_span("No cell has finished: there is nothing to compare."), r"\midrule"]
    for group in words.effect_groups(study, comparison):
        body += _spans(f"Main effects, {group.title}", group.protocol)
        body += [_tex_row([row[0], row[1], "", *_without_p(row[2:], 2)]) for row in group.rows] + [r"\midrule"]
    notes = [_tex(line) for line in words.explanation(study, comparison)]
    if study["conditions"]:
        notes.append(rf"\textbf{{Not equal: {_tex('; '.join(study['conditions']))}}}")
    notes += [f"{title}: {_tex('; '.join(lines))}." for title, lines in _lists(study, comparison)]
    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(words.summary(study))}}}",
        rf"\label{{tab:ablation-{study['id']}}}",
        r"\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{l{'r' * (COLUMNS - 2)}l}}",
        r"\toprule",
        _tex_row(_without_p(words.HEAD)),
        r"\midrule",
        *body[:-1],
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\medskip\raggedright",
        *notes,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _without_p(row: Sequence[str], place: int = words.HEAD.index("p")) -> list[str]:
    return [*row[:place], *row[place + 1 :]]


def _spans(title: str, protocol: str) -> list[str]:
    return [_span(title), _span(protocol, r"\scriptsize")]


def _span(text: str, style: str = r"\itshape") -> str:
    return rf"\multicolumn{{{COLUMNS}}}{{l}}{{{style} {_tex(text)}}} \\"


def _tex_row(cells: Sequence[str]) -> str:
    first, *rest = cells
    return " & ".join([_tex(first), *map(_tex_number, rest)]) + r" \\"


def _tex_number(cell: str) -> str:
    """A cell of numbers in mathematical mode, any other as text."""
    if not re.fullmatch(r"[-+−±\d.,e\[\]< ]*\d[-+−±\d.,e\[\]< ]*", cell):
        return _tex(cell)
    text = NUMBER.sub(lambda m: m[1] + m[2] + (rf" \times 10^{{{m[3]}{m[4]}}}" if m[4] else ""), cell)
    for sign, command in (("−", "-"), ("±", r"\pm"), (", ", r",\ ")):
        text = text.replace(sign, command)
    return f"${text}$"


def _tex(text: str) -> str:
    return " ".join("".join(SPECIAL.get(c, c) for c in text).split())


def _lists(study: Study, comparison: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What is not in the rows, under a title each."""
    failed = [f"{cell}: {error}" + (f" ({file})" if file else "") for cell, error, file in words.failures(study)]
    found = [
        ("Failed cells", failed),
        ("Not yet run", words.pending(study)),
        ("Finished without a value", words.without_value(comparison)),
    ]
    return [(title, lines) for title, lines in found if lines]

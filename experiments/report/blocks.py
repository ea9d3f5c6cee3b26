"""What a page is made of, and how each part is written as HTML and as Markdown."""

import base64
import html
import re
from collections.abc import Sequence
from typing import NamedTuple, Union

NUMBER = re.compile(r"[-+(>]?[\s(]*[\d.]+[\d.,]*.*")


MAX_NUMBER = 32
"""Characters of the longest cell that is set as a number: on one line, to the right."""


class Heading(NamedTuple):
    """A heading; level 2 opens a run."""

    level: int
    text: str
    anchor: str = ""


class Paragraph(NamedTuple):
    """A paragraph, after a label in bold if there is one."""

    text: str
    label: str = ""


class Links(NamedTuple):
    """Links to headings of the page, with a few words each."""

    items: Sequence[tuple[str, str, str]]
    """Anchor, name, words."""


class Facts(NamedTuple):
    """A list of sentences."""

    items: Sequence[str]


class Table(NamedTuple):
    """A table, and a note that says what its cells are."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Picture(NamedTuple):
    """A figure; ``file`` is what its Markdown refers to, relative to the page."""

    file: str
    alt: str
    caption: str
    png: bytes


class Code(NamedTuple):
    """Text to be read as it stands."""

    text: str
    language: str


class Fragment(NamedTuple):
    """Something that only HTML can hold, and what Markdown says in its place."""

    html: str
    instead: str


class Details(NamedTuple):
    """Parts that are shown once they are asked for."""

    summary: str
    blocks: Sequence["Block"]


class Pictures(NamedTuple):
    """Figures that may stand beside one another."""

    pictures: Sequence[Picture]


Block = Union[  # noqa: UP007 - its members refer to it
    Heading, Paragraph, Links, Facts, Table, Picture, Pictures, Code, Fragment, Details
]


def to_html(blocks: Sequence[Block]) -> str:
    """Returns blocks as HTML that refers to nothing outside of itself."""
    return "\n".join(_html(block) for block in blocks)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Returns blocks as Markdown whose figures are files."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _html(block: Block) -> str:
    text = html.escape
    match block:
        case Heading(level, words, anchor):
            identity = f' id="{text(anchor)}"' if anchor else ""
            return f"<h{level}{identity}>{text(words)}</h{level}>"
        case Paragraph(words, label):
            return f"<p>{f'<strong>{text(label)}</strong> ' if label else ''}{text(words)}</p>"
        case Links(items):
            lines = (
                f'<li><a href="#{text(anchor)}">{text(name)}</a> {text(words)}</li>'
                for anchor, name, words in items
            )
            return f'<nav aria-label="runs"><ul>{"".join(lines)}</ul></nav>'
        case Facts(items):
            return f"<ul>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>"
        case Table():
            return _html_table(block)
        case Picture(_, alt, caption, png):
            width = int.from_bytes(png[16:20], "big") * 2 // 3  # 144 dots an inch, 96 of CSS
            data = base64.b64encode(png).decode()
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{text(alt)}" '
                f'width="{width}"><figcaption>{text(caption)}</figcaption></figure>'
            )
        case Pictures(pictures):
            return f'<div class="figures">{"".join(map(_html, pictures))}</div>'
        case Code(words, _):
            return f"<pre><code>{text(words)}</code></pre>"
        case Fragment(fragment, _):
            return fragment
        case Details(summary, parts):
            return f"<details><summary>{text(summary)}</summary>{to_html(parts)}</details>"


def _html_table(table: Table) -> str:
    text = html.escape
    columns = range(len(table.header))
    numeric = {i for i in columns if i and all(_is_number(row[i]) for row in table.rows)}

    def kind(i: int) -> str:
        return ' class="number"' if i in numeric else ""

    def cell(i: int, words: str) -> str:
        tag, scope = ("td", "") if i else ("th", ' scope="row"')
        return f"<{tag}{scope}{kind(i)}>{text(words)}</{tag}>"

    head = "".join(
        f'<th scope="col"{kind(i)}>{text(words)}</th>' if words else "<td></td>"
        for i, words in enumerate(table.header)
    )
    body = "".join(
        f"<tr>{''.join(cell(i, words) for i, words in enumerate(row))}</tr>" for row in table.rows
    )
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    # Wide tables scroll by themselves; focusable, so that the keyboard can do it.
    return (
        f'<div class="table" tabindex="0" role="group" aria-label="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _is_number(words: str) -> bool:
    return words in ("", "-", "any") or (
        len(words) <= MAX_NUMBER and NUMBER.fullmatch(words) is not None
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, words, _):
            return f"{'#' * level} {words}"
        case Paragraph(words, label):
            return f"**{label}** {words}" if label else words
        case Links(items):
            return "\n".join(f"- **{name}** {words}".rstrip() for _, name, words in items)
        case Facts(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(header, rows, note):
            table = markdown_table(header, rows)
            return f"{table}\n\n{note}" if note else table
        case Picture(file, alt, caption, _):
            return f"![{alt}]({file})\n\n*{caption}*"
        case Pictures(pictures):
            return "\n\n".join(map(_markdown, pictures))
        case Code(words, language):
            return f"```{language}\n{words}\n```"
        case Fragment(_, instead):
            return instead
        case Details(summary, parts):
            inner = "\n\n".join(map(_markdown, parts))
            return f"<details><summary>{html.escape(summary)}</summary>\n\n{inner}\n\n</details>"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, a line a row."""
    lines = [header, ["---"] * len(header), *rows]
    plain = [[x.replace("|", "\\|").replace("<", "&lt;") for x in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in plain)

"""Pages of Markdown and modules of Python as HTML."""

import dataclasses
import functools
import html
import re

import pygments
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token as Piece
from mdit_py_plugins.anchors import anchors_plugin
from pygments.filter import simplefilter
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.token import Token
from pygments.util import ClassNotFound

COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Heading:
    level: int
    anchor: str
    words: str


@dataclasses.dataclass(frozen=True)
class Document:
    """A page of Markdown."""

    title: str
    body: str  # HTML, its links as they stand in the text
    headings: list[Heading]  # but for the title

    @property
    def first_words(self) -> str:
        """The first paragraph as plain text."""
        match = re.search(r"<p>(.*?)</p>", self.body, re.DOTALL)
        return html.unescape(re.sub(r"<[^>]+>", "", match[1])) if match else ""


def document(text: str) -> Document:
    """A page of Markdown as HTML. A comment, such as a marker of a written part, is left out."""
    reader = _reader()
    tokens = reader.parse(COMMENT.sub("", text))
    headings = [
        Heading(int(token.tag[1]), str(token.attrs["id"]), _plain(tokens[i + 1]))
        for i, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    body = reader.renderer.render(tokens, reader.options, {})
    title = headings[0].words if headings else ""
    return Document(title, body, headings[1:])


def fragment(text: str) -> str:
    """A piece of Markdown as HTML."""
    return document(text).body


def inline(text: str) -> str:
    """A sentence of Markdown as HTML, without a paragraph of its own."""
    return _reader().renderInline(text)


@functools.cache
def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"highlight": _highlighted}).enable(
        ["table", "strikethrough"]
    )
    reader.use(anchors_plugin, max_level=6, slug_func=slug)
    reader.add_render_rule("table_open", _table_open)
    reader.add_render_rule("table_close", _table_close)
    return reader


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _table_open(self: RendererHTML, tokens, i, options, env) -> str:
    return '<div class="scroll"><table>\n'


def _table_close(self: RendererHTML, tokens, i, options, env) -> str:
    return "</table></div>\n"


def _plain(token: Piece) -> str:
    """The words of a heading."""
    return "".join(t.content for t in token.children or [] if t.type in ("text", "code_inline"))


def _highlighted(code_: str, language: str, _attributes: str) -> str:
    try:
        lexer = get_lexer_by_name(language) if language else None
    except ClassNotFound:
        lexer = None
    return _colored(code_, lexer, nowrap=True) if lexer else ""


def source(text: str, name: str) -> str:
    """A file of code as HTML, with the anchors L-1, L-2, … of its lines."""
    try:
        lexer = get_lexer_for_filename(name, stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False)
    return _colored(text, lexer, linespans="L")


def code(text: str) -> str:
    """A piece of Python as HTML."""
    return _colored(text, get_lexer_by_name("python"))


def _colored(text: str, lexer: Lexer, **options) -> str:
    lexer.add_filter(_plain_names())
    return pygments.highlight(text, lexer, HtmlFormatter(**options))


@simplefilter
def _plain_names(self, lexer, stream, options):
    """What gets no color gets no element either: that halves a page of code."""
    for kind, value in stream:
        plain = kind in Token.Text or kind in Token.Punctuation
        plain = plain or kind in (Token.Name, Token.Operator)
        yield (Token.Text if plain else kind), value

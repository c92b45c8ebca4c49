"""The exported file: whatever policy and pages wrote is text in it, and all of it is there."""

from lxml import html

from asearch.traces.html import html_of
from asearch.traces.plain_text import ellipsis, folded_line, plain, plain_line, shortened
from tests.traces.spoken import EVIL, LONG, hostile_episode

KNOWN = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "small", "dl", "dt", "dd", "pre", "p", "span"),
    *("details", "summary", "div", "table", "thead", "tbody", "tr", "th", "td"),
}


def test_the_file_is_inert_and_complete() -> None:
    text = html_of(hostile_episode())
    tree = html.fromstring(text.encode(), parser=html.HTMLParser(encoding="utf-8", huge_tree=True))
    elements = [each for each in tree.iter() if isinstance(each.tag, str)]
    assert {each.tag for each in elements} <= KNOWN
    assert {name for each in elements for name in each.attrib} <= {"lang", "charset", "http-equiv", "content", "name", "class"}
    assert not [each for each in tree.iter() if not isinstance(each.tag, str)]
    policy = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "url(" not in text
    assert "@import" not in text
    whole = tree.text_content()
    # Question, answer, gold answer, task, reason, note, prompt, written, asked, found, shown, token: each in full.
    assert whole.count(plain(EVIL)) >= 15
    assert LONG + "end" in whole
    assert "-0.2500" in whole
    assert not any(each in text for each in "\x1b\x00\x9b\u202e\u2066\u200f\r")


def test_marks_that_a_terminal_obeys_are_escapes() -> None:
    assert plain("a\x1b[31m\tb\nc\x9b\u202e\u2028\ud83d") == "a\\x1b[31m\tb\nc\\x9b\\u202e\\u2028\\ud83d"
    assert plain("שלום 漢字 é 👩‍🔬 -> ok") == "שלום 漢字 é 👩‍🔬 -> ok"
    assert plain_line("a\nb\tc") == "a\\nb\\tc"
    assert folded_line("  a \n\n b\x07") == "a b\\x07"
    assert shortened("x" * 10, 10) == "x" * 10
    cut = shortened("a" * 500 + "b" * 500, 100)
    assert cut.startswith("a" * 75)
    assert cut.endswith("b" * 25)
    assert "900 more" in cut
    assert ellipsis("abcdef", 4) == "abc…"

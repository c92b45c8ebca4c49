"""How answers are made comparable: the variants that published results use, by name."""

import re
import string
from collections.abc import Callable

import msgspec

from asearch.registry import Registry

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_NUMBER_OR_CHARACTER = re.compile(r"\d+|\S")
_TRUTH = {"true": "yes", "false": "no"}


def squad(text: str) -> str:
    """SQuAD (Rajpurkar et al. 2016, official script): lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


def spaced(text: str) -> str:
    """DeepResearcher: lower case, punctuation becomes space, articles stay, single spaces."""
    return " ".join(text.lower().translate(_SPACE_PUNCTUATION).split())


def asearcher(text: str) -> str:
    """ASearcher: as DeepResearcher, and a lone true or false is yes or no."""
    plain = spaced(text)
    return _TRUTH.get(plain, plain)


class Normaliser(msgspec.Struct, frozen=True):
    """A variant: the text that exact match compares, and whether F1 counts its words as a set or as a multiset.

    With `han_characters` an answer whose reference has Chinese characters is counted in characters and whole numbers.
    """

    text: Callable[[str], str]
    as_set: bool
    han_characters: bool = False

    def comparable(self, text: str) -> str:
        """The normalised text; where nothing is left of it (the answer "A", "!"), the text itself in lower case."""
        return self.text(text) or " ".join(text.lower().split())

    def words(self, text: str, reference: str) -> list[str]:
        """The words of `text` (prediction or reference) as F1 counts them against `reference`; repeated only in multisets."""
        plain = self.comparable(text)
        by_character = self.han_characters and _HAN.search(reference) is not None
        words = _NUMBER_OR_CHARACTER.findall(plain) if by_character else plain.split()
        return list(dict.fromkeys(words)) if self.as_set else words


NORMALISERS: Registry[Normaliser] = Registry("normaliser")
SQUAD = NORMALISERS.register("squad")(Normaliser(squad, as_set=False))
ASEARCHER = NORMALISERS.register("asearcher")(Normaliser(asearcher, as_set=True, han_characters=True))
DEEPRESEARCHER = NORMALISERS.register("deepresearcher")(Normaliser(spaced, as_set=True))

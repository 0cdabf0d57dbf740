"""The eight languages that LFM2 names, by ISO 639-1 code."""

from __future__ import annotations

from .language import Language
from .phrases_asia import ARABIC, CHINESE, JAPANESE, KOREAN
from .phrases_europe import ENGLISH, FRENCH, GERMAN, SPANISH

LANGUAGES: dict[str, Language] = {
    language.code: language for language in (ENGLISH, ARABIC, CHINESE, FRENCH, GERMAN, JAPANESE, KOREAN, SPANISH)
}

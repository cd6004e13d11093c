"""Spellings of sequences in one word, such as `T1KM` or `axT1post`: the one table for names and descriptions.

A word is split only if it consists of known parts: `axt1post` is `ax t1 post`. `patient1`, `t1x` and `visit2` are not
split, so they name no sequence. What the parts mean stands in `rules.yaml`.
"""

from __future__ import annotations

import re
from functools import lru_cache

_PLANES = (
    "ax axi axial tra trans transv transverse transversal sag sagit sagital sagittal cor coronal cr obl oblique oax"
)
_AGENTS = (
    "gd gad gado gadolinium gadovist dotarem km kl kontrast kontrastmittel contrast contraste contrasto post "
    "postcontrast postgd postgad postgado postkm postinj enhanced enh inj "
    "withcontrast withgd withgad plusc plusgd gddtpa gddota gdbopta"
)
_PLAIN = "pre precontrast pregd pregad prekm nativ native nativa nativo plain noncontrast nonenhanced unenhanced nongd"
_METHODS = (
    "mprage mpr memprage mp2rage bravo spgr fspgr efspgr irfspgr vibe starvibe tse se fse ffe tfe gre spc space cube "
    "vista flash fl fl2d fl3d tfl ir blade propeller prop dixon haste star map maps mapping rho hemo haemo stir fs "
    "fatsat fatsup weighted gewichtet iso"
)
NEUTRAL = frozenset((*_PLANES.split(), *_METHODS.split(), *["2d", "3d", "mr", "mri", "w", "wi", "nii"]))
"""Words that name neither a sequence nor a patient."""
_SHORT_AFTER = "c ce k n f"
"""Short words that have a meaning only after a weighting: `t1c`, `t1n`, `t2f`."""
_FREE = f"{_PLANES} {_AGENTS} {_PLAIN} {_METHODS} 2d 3d"
"""Words that may stand before or after a weighting."""
_CORES = (
    "t1wi t1w t1 t2wi t2w t2 flair flari fliar fler flar tirm darkfluid mprage memprage bravo spgr fspgr efspgr fgre"
)


def _alternatives(words: str) -> str:
    """Pattern that matches any of the words, the longest first."""
    return "|".join(sorted(set(words.split()), key=lambda word: (-len(word), word)))


_BEFORE = re.compile(_alternatives(_FREE))
_AFTER = re.compile(_alternatives(f"{_FREE} {_SHORT_AFTER} {_CORES}"))
_WORD = re.compile(
    rf"(?P<before>(?:{_BEFORE.pattern})*)(?P<agent>ce|c)?(?P<letter>[steviw](?=t[12]))?(?P<core>{_alternatives(_CORES)})"
    rf"(?P<after>(?:{_AFTER.pattern})*)(?P<number>(?<=[a-z])\d{{1,2}})?"
)
_RUN = re.compile(r"[a-z0-9]+(?![a-z0-9])")


def separated(text: str) -> str:
    """Separate the joined words of a normalised text: `axt1post` becomes `ax t1 post`, `ct1` becomes `t1 c`."""
    return re.sub(r" +", " ", _RUN.sub(lambda match: _separated_word(match.group()), text)).strip()


@lru_cache(maxsize=4096)
def _separated_word(word: str) -> str:
    match = _WORD.fullmatch(word)
    if match is None:
        return word
    core, agent, letter = match["core"], match["agent"] or "", match["letter"] or ""
    if agent and not core.startswith("t1"):
        return word
    parts = [
        *_BEFORE.findall(match["before"]),
        letter,
        core,
        agent,
        *_AFTER.findall(match["after"]),
        match["number"] or "",
    ]
    return f" {' '.join(filter(None, parts))} "

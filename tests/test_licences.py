"""What is installed may be used commercially: no GPL, no AGPL, nothing without a licence."""

import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
FREE = re.compile(
    r"\b(MIT|MIT-CMU|0?BSD|Apache|ISC|Zlib|PSF|Python Software Foundation|MPL|Mozilla|CC0|BSL)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\bL?A?GPL|General Public License", re.IGNORECASE)
KNOWN = {
    # CUDA's libraries, which torch needs on Linux; their licence allows use and redistribution
    # with an application, commercial or not.
    "nvidia-": "NVIDIA Proprietary",
    "cuda-": "NVIDIA Proprietary",
}


def licence_of(name: str) -> str:
    """Give what a package says of its licence; the newest form of saying it first."""
    metadata = distribution(name).metadata
    classified = [
        line.rpartition("::")[2].strip()
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    said = metadata.get("License-Expression") or ", ".join(classified) or metadata.get("License")
    known = [text for start, text in KNOWN.items() if name.startswith(start)]
    return known[0] if known else (said or "").split("\n")[0]


def test_every_package_of_the_lock_may_be_used() -> None:
    names = re.findall(r"^([A-Za-z0-9_.-]+)==", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    licences: dict[str, str] = {}
    for name in names:
        try:
            licences[name] = licence_of(name)
        except PackageNotFoundError:  # for another system
            continue
    assert len(licences) > 100
    refused = {
        name: licence
        for name, licence in licences.items()
        if licence not in KNOWN.values() and (COPYLEFT.search(licence) or not FREE.search(licence))
    }
    for licence, count in Counter(licences.values()).most_common():
        print(f"{count:4} {licence}")
    assert refused == {}


def test_what_is_refused() -> None:
    for licence in ("AGPL-3.0", "GPL-2.0-only", "GNU Affero General Public License v3", "LGPL-3.0"):
        assert COPYLEFT.search(licence)
    assert not FREE.search("Proprietary")

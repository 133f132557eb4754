"""The project is Apache-2.0: nothing that it installs may be under the GPL."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

LESSER = re.compile(r"lesser|lgpl", re.IGNORECASE)
GPL = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)


def installed_with(name: str, seen: dict[str, str]) -> dict[str, str]:
    """Every distribution that `name` requires, with what it says of its licence."""
    try:
        meta = distribution(name).metadata
    except PackageNotFoundError:
        return seen  # not for this platform
    key = meta["Name"].lower()
    if key in seen:
        return seen
    said = [meta.get("License-Expression"), (meta.get("License") or "").splitlines()[:1]]
    said += meta.get_all("Classifier") or []
    seen[key] = " | ".join(str(s) for s in said if (s and "Licen" in str(s)) or "GPL" in str(s))
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            installed_with(requirement.name, seen)
    return seen


def test_no_dependency_is_under_the_gpl() -> None:
    found = installed_with("dicom-node", {})
    assert len(found) > 30, "the closure was not walked"
    assert "pylibjpeg-libjpeg" not in found
    under_gpl = {
        name: licence
        for name, licence in found.items()
        if GPL.search(licence) and not LESSER.search(licence) and " OR " not in licence
    }
    assert under_gpl == {}

"""The packages that the reference corpus is made from: their list, download, files and licence."""

from __future__ import annotations

import email.parser
import email.policy
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

Kind = Literal["sdist", "wheel"]
Use = Literal["train", "heldout"]

LIST = Path(__file__).with_name("packages.txt")

# Classifiers and free-text licence fields, most specific first, and the SPDX identifier of each.
_LICENSES = (
    (r"lgpl.*(v3|3\.0|\b3\b)|lesser.*v3", "LGPL-3.0-or-later"),
    (r"lgpl|lesser general public", "LGPL-2.1-or-later"),
    (r"agpl|affero", "AGPL-3.0-or-later"),
    (r"gpl.*(v3|3\.0|\b3\b)|general public license v3", "GPL-3.0-or-later"),
    (r"gpl|general public license", "GPL-2.0-or-later"),
    (r"apache", "Apache-2.0"),
    (r"mpl|mozilla", "MPL-2.0"),
    (r"python software foundation|psf", "PSF-2.0"),
    (r"zope public|zpl", "ZPL-2.1"),
    (r"bsd", "BSD-3-Clause"),
    (r"\bmit\b|expat", "MIT"),
    (r"\bisc\b", "ISC"),
    (r"hpnd|historical permission", "HPND"),
    (r"public domain|unlicense", "Unlicense"),
    (r"repoze|bsd-derived", "BSD-3-Clause-Modification"),
)
# Identifiers of an SPDX expression that allow use and redistribution.
_FREE = re.compile(
    r"^(MIT(-\w+)?|0?BSD(-\w+)*|Apache-2\.0|PSF-2\.0|Python-2\.0(\.1)?|MPL-2\.0|[AL]?GPL-[\d.]+\+?(-\w+)*"
    r"|ISC|ZPL-2\.1|HPND|Unlicense|CC0-1\.0|CC-BY-(SA-)?\d\.0|LLVM-exception|Zlib|BSL-1\.0|CNRI-Python"
    r"|LicenseRef-[\w-]*BSD[\w-]*|LicenseRef-Biopython-License-Agreement|BSD-3-Clause-Modification|NCSA|MIT-CMU|EPL-2\.0|Artistic-2\.0"
    r"|Classpath-exception-2\.0|Bootloader-exception|OFL-1\.1)$"
)


class PackageError(RuntimeError):
    """A package can't be downloaded, read, or used under its licence."""


class Package(NamedTuple):
    """One line of `packages.txt`."""

    name: str
    version: str
    kind: Kind
    use: Use


def read_list(path: Path = LIST) -> list[Package]:
    """Read lines of `name==version kind use`; `#` begins a comment. Raises PackageError."""
    packages = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not (line := line.partition("#")[0].strip()):
            continue
        match = re.fullmatch(r"([\w.-]+)==(\S+) (sdist|wheel) (train|heldout)", line)
        if match is None:
            raise PackageError(
                f"{path} line {number}: '{line}' is not 'name==version sdist|wheel train|heldout'"
            )
        packages.append(Package(*match.groups()))  # type: ignore[arg-type]
    return packages


def find_archive(package: Package, folder: Path) -> Path | None:
    """Return the downloaded archive of a package, or None."""
    wanted = (canonicalize_name(package.name), package.version)
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        if (path.suffix == ".whl") != (package.kind == "wheel"):
            continue
        parse = parse_wheel_filename if path.suffix == ".whl" else parse_sdist_filename
        try:
            name, version = parse(path.name)[:2]
        except ValueError:
            continue
        if (name, str(version)) == wanted:
            return path
    return None


def download(package: Package, folder: Path, timeout: float = 600) -> Path:
    """Download a package without its dependencies, unless it exists. Raises PackageError."""
    if (archive := find_archive(package, folder)) is not None:
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    only = "--no-binary" if package.kind == "sdist" else "--only-binary"
    # Only the package itself as an sdist: what pip needs to read its metadata comes as wheels.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", only, package.name]
    requirement = f"{package.name}=={package.version}"
    try:
        subprocess.run(
            [*command, "--dest", str(folder), requirement],
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no output"]
        raise PackageError(f"pip can't download {requirement}: {lines[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"pip download {requirement}: no end after {timeout:.0f} s") from error
    if (archive := find_archive(package, folder)) is None:
        raise PackageError(
            f"pip downloaded {requirement}, but {folder} holds no such {package.kind}"
        )
    return archive


def read_files(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the regular files whose path matches, sorted by path.

    The paths do not include the folder `name-version/` of an sdist.
    """
    wanted = re.compile(pattern)
    if archive.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(archive) as zipped:
            names = {_inner(name, archive): name for name in zipped.namelist()}
            for path in sorted(path for path in names if wanted.search(path)):
                if not path.endswith("/"):
                    yield path, zipped.read(names[path])
        return
    with tarfile.open(archive) as tar:
        matching = []
        for member in tar:  # in the archive's order: a compressed archive can't be read at random
            path = _inner(member.name, archive)
            if member.isfile() and wanted.search(path) and (file := tar.extractfile(member)):
                matching.append((path, file.read()))
    yield from sorted(matching)


def _inner(name: str, archive: Path) -> str:
    return name if archive.suffix == ".whl" else name.removeprefix("./").partition("/")[2]


def read_license(archive: Path) -> str:
    """Return the SPDX expression of a package's licence. Raises PackageError if it isn't free."""
    metadata = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(
        read_metadata(archive)
    )
    expression = str(metadata.get("License-Expression") or "")
    if not expression:
        classifiers = [str(c) for c in metadata.get_all("Classifier", [])]
        licenses = [c.lower() for c in classifiers if c.startswith("License ::")]
        first_line = str(metadata.get("License") or "").strip().partition("\n")[0]
        expression = spdx(licenses) or spdx([first_line.lower()])
    parts = re.split(r"[\s()]+(?:AND|OR|WITH)[\s()]+", expression.strip("() "))
    if not expression or not all(_FREE.match(part.strip("() ")) for part in parts):
        raise PackageError(
            f"{archive.name}: licence '{expression or 'unknown'}' is not in the list of licences "
            "that allow use and redistribution; take the package out of packages.txt"
        )
    return expression


def read_metadata(archive: Path) -> bytes:
    """Return the METADATA of a wheel or the PKG-INFO of an sdist; empty if it has none."""
    if archive.suffix == ".whl":
        pattern = r"^[^/]+\.dist-info/METADATA$"
        return next((content for _, content in read_files(archive, pattern)), b"")
    if archive.suffix == ".zip":
        return next((content for _, content in read_files(archive, r"^PKG-INFO$")), b"")
    with tarfile.open(archive) as tar:
        for member in tar:
            if _inner(member.name, archive) == "PKG-INFO" and (file := tar.extractfile(member)):
                return file.read()
    return b""


def spdx(descriptions: list[str]) -> str:
    """Return the SPDX expression of classifiers or of a licence field in lower case, or ''."""
    expression = (
        next((name for pattern, name in _LICENSES if re.search(pattern, description)), None)
        for description in descriptions
    )
    return " OR ".join(dict.fromkeys(name for name in expression if name))

"""EPUB books as text. Our own few lines: EbookLib is under the AGPL."""

from __future__ import annotations

from posixpath import dirname, join, normpath
from urllib.parse import unquote

from homerlm.documents.archives import open_zip, read_xml
from homerlm.documents.html import read_html
from homerlm.documents.parsing import parsing
from homerlm.errors import DocumentError


def read_epub(data: bytes, name: str) -> str:
    """Chapters in reading order (the spine), joined by blank lines; their titles, mostly the book's, are left out."""
    with parsing(name, "an EPUB"), open_zip(data, name) as archive:
        package_path = read_xml(archive, "META-INF/container.xml").findall(".//{*}rootfile")[0].attrib["full-path"]
        package = read_xml(archive, package_path)
        items = {item.get("id"): item for item in package.findall("{*}manifest/{*}item")}
        spine = [items[key] for ref in package.findall("{*}spine/{*}itemref") if (key := ref.get("idref")) in items]
        links = [unquote(item.attrib["href"]) for item in spine if not item.get("media-type", "").startswith("image/")]
        paths = [normpath(join(dirname(package_path), link)) for link in links]
        if "META-INF/encryption.xml" in archive.namelist():  # also lists fonts, which do not matter here
            encrypted = read_xml(archive, "META-INF/encryption.xml").findall(".//{*}CipherReference")
            if {unquote(part.get("URI", "")) for part in encrypted} & set(paths):
                raise DocumentError(f"{name}: is encrypted (DRM); use a copy without copy protection")
        chapters = [read_html(archive.read(path), f"{name} ({path})", title=False) for path in paths]
    return "\n\n".join(chapter for chapter in chapters if chapter)

"""E-mails (.eml) and web pages saved as one (.mht) as text."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from homerlm.documents.charsets import decode_text
from homerlm.documents.html import read_html
from homerlm.documents.parsing import parsing
from homerlm.errors import DocumentError

HEADERS = ("Subject", "From", "To", "Cc", "Date")


def read_mail(data: bytes, name: str) -> str:
    """Main headers, then the text (its plain version if there is one), then the names of attachments, not read."""
    with parsing(name, "an e-mail"):
        mail: Any = message_from_bytes(data, policy=policy.default)
        headers = [f"{key}: {' '.join(str(mail[key]).split())}" for key in HEADERS if mail[key]]
        if not headers:
            raise ValueError("it has neither a subject nor a sender, receiver or date")
        body = mail.get_body(("plain", "html"))
        parts = list(mail.iter_attachments())
        texts = [part for part in [body, *parts] if part is not None and (part is body or _is_inline_text(part))]
        attached = [part.get_filename() or part.get_content_type() for part in parts if part not in texts]
        if not texts:
            found = ", ".join(attached) or mail.get_content_type()
            raise DocumentError(f"{name}: holds no text, only {found}; save that on its own and name the file")
        pieces = ["\n".join(headers), *(_text(part, name).strip("\n") for part in texts)]
    if attached:
        pieces.append(f"Attachments, not read: {', '.join(attached)}")
    return "\n\n".join(piece for piece in pieces if piece)


def _is_inline_text(part: EmailMessage) -> bool:
    """Whether this is more of the letter itself, which some programs cut at each picture."""
    named = part.get_filename() or part.get_content_disposition() == "attachment"
    return part.get_content_type() in ("text/plain", "text/html") and not named


def _text(part: EmailMessage, name: str) -> str:
    data: Any = part.get_payload(decode=True)
    if part.get_content_subtype() == "html":
        return read_html(data, name, title=False)
    return decode_text(data, name, part.get_content_charset() or "")

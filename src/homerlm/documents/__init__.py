"""Documents as plain text."""

from homerlm.documents.reading import read_document, read_documents

__all__ = ["read_document", "read_documents"]

"""Documents as plain text."""

from homerlm.documents.charsets import SUPPORTED
from homerlm.documents.inputs import DocumentSpan, Inputs, Skipped, expand_inputs
from homerlm.documents.reading import headings_of, read_bytes, read_document, read_documents, read_each, read_inputs

__all__ = [
    "SUPPORTED",
    "DocumentSpan",
    "Inputs",
    "Skipped",
    "expand_inputs",
    "headings_of",
    "read_bytes",
    "read_document",
    "read_documents",
    "read_each",
    "read_inputs",
]

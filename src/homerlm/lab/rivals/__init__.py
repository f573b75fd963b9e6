"""Other ways to choose what a model reads of a long document: passages by their words, by chance, by the answer."""

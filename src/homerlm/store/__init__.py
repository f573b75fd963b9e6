"""Documents at rest: a folder of indexes, uploaded files and vector stores, each of one owner.

`homerlm.store.store` is the folder, `homerlm.store.documents` reads documents into it on an engine.
"""

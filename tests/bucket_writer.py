"""Writes to a store in a bucket for some seconds as its own owner, and prints the ids of what it leaves there."""

import hashlib
import os
import random
import sys
import time

from homerlm.store.store import Store

place, seed, cache = sys.argv[1:]
os.environ["HOMERLM_CACHE"] = cache
store, draw = Store(place, max_bytes=1 << 30, owner_bytes=1 << 30), random.Random(int(seed))
end, left = time.monotonic() + 4, set()
while time.monotonic() < end:
    content, path = draw.randbytes(draw.randint(1, 5000)), store.temporary()
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    if draw.random() < 0.5:
        left.add(store.add_file(path, owner=seed, name=digest, purpose="assistants").id)
    else:
        facts = {"name": "n", "model": "m", "maker": "m", "tokens": 1, "sha256": digest}
        left.add(store.add_document(path, owner=seed, **facts).id)
    if len(left) == 1:
        print("writing", flush=True)
    elif draw.random() < 0.3:
        gone = left.pop()
        assert store.remove_file(seed, gone) or store.remove_document(seed, gone)
print(*left)

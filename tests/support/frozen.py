"""The last thing that a server imports: Python's collector need not look at what came before.

In each process it would do so again and again, for half a second each time, and copy the pages that all of it lies in.
"""

import atexit
import gc

gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # The server's own end, at which some libraries count what was not freed.

"""Reading on several devices and machines: the executors (`homerlm.executor` is their protocol), and corpora."""

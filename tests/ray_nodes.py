"""Ray as tests use it: two machines of two CPUs each, on this one."""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

PATHS = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


@contextmanager
def two_machines():
    import ray
    from ray.cluster_utils import Cluster

    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray takes it and does not give it back
    node = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=2, object_store_memory=100_000_000)
    ray.init(address=made.address, runtime_env={"env_vars": {"PYTHONPATH": PATHS}}, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    signal.signal(signal.SIGTERM, on_sigterm)

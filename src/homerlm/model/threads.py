"""Who computes with several threads in a program where one thread uses the model."""

from __future__ import annotations

import torch


def leave_threads_to_model() -> int:
    """How many threads torch computes with here. From now on this thread, and all that begin, compute by themselves;
    the one that is to use the model sets its number anew.

    OpenMP keeps threads for each thread that has ever computed with several. Where all of them together are more than
    the cores, GCC's lets them sleep between any two operations, and a token takes 1.7 times as long on two cores. So it
    has to come before the model is loaded. It is a setting of the whole process, so it is for programs (`homer serve`
    makes it) and never made by importing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return threads


def take_threads(count: int) -> None:
    """Let the calling thread compute with so many. It sets the number for threads that begin later, too."""
    torch.get_num_threads()  # else the thread's first operation sets it to what others have by then
    torch.set_num_threads(count)

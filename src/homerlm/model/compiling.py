"""`torch.compile` for a model that HOMER reads with: an option that changes no result beyond rounding."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import PreTrainedModel

from homerlm.model.decoder import Decoder
from homerlm.model.identity import check_model

Model = TypeVar("Model", bound=PreTrainedModel)


def compile_model(model: Model, *, backend: str = "inductor") -> Model:
    """Have `torch.compile` fuse what the model does between its matrices, in place: each layer, which is how documents
    are read, and the whole forward, which is how new tokens are made. All lengths share what is compiled.

    The first document and its first new tokens wait for the compiler (on two CPU cores some 20 and 60 s for 135M
    parameters in 30 layers), so this is for programs that read much. `backend` is torch's; "inductor" wants a C++
    compiler on a CPU.

    Raises `InputError` for what is no model, `UnsupportedModelError`. Gives back the model itself.
    """
    check_model(model)
    for layer in Decoder(model).layers:
        layer.compile(dynamic=True, backend=backend)
    model.forward = torch.compile(model.forward, dynamic=True, backend=backend)
    return model

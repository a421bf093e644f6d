"""Tensors that have a row or a column for each token: a change of them says which tokens were trained on."""

from __future__ import annotations

from torch import nn

from fedsa_lora.learning.adapters import AdapterModel, plain_name


def token_tensors(model: AdapterModel) -> frozenset[str]:
    """The tensors of a layout with values for each token: of embeddings, and of a layer that writes tokens.

    After a step only the tokens that were read have changed values in an embedding, and in the A of its
    adapter, (r, tokens); in the B of a layer with one output for each token, (tokens, r),
    those that were to be written stand out.
    """
    tokens = {}  # how many a layer has values for
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Embedding):
            tokens[_layer(name)] = module.num_embeddings
    largest = max(tokens.values(), default=0)
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == largest:
            tokens[_layer(name)] = largest
    return frozenset(spec.name for spec in model.layout if tokens.get(spec.layer) in spec.shape)


def _layer(module: str) -> str:
    return plain_name(module).removesuffix(".base_layer")

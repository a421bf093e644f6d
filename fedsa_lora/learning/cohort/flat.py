"""The resident model as it computes the flat tokens of several clients, each with its own tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cohort.attention import NAME
from fedsa_lora.learning.cohort.fit import READINGS
from fedsa_lora.learning.cohort.layers import LowRank, Own, passed
from fedsa_lora.learning.cohort.masks import FlatMasks, Mask, dropped
from fedsa_lora.learning.cohort.packed import Packed
from fedsa_lora.learning.cohort.products import Products, multiplied
from fedsa_lora.learning.cohort.rows import Rows
from fedsa_lora.learning.masking import replaced
from fedsa_lora.learning.targets import LINEAR
from fedsa_lora.tasks.heads import block, unwrapped
from fedsa_lora.tasks.pooling import is_mean_pooled


class FlatModel:
    """A model whose layers take the tensors of each client from ``rows``, as long as it is ``installed``.

    The backbone is given the flat tokens in the place of the batch, and hands on one token for each sequence,
    the one that the head reads, or the mean of all: the head sees sequences of one token.
    """

    def __init__(self, model: AdapterModel, rows: Rows, products: Products) -> None:
        self.rows, self._base = rows, unwrapped(model.module)
        self._backbone, self._reading = self._base.base_model, READINGS[self._base.config.model_type]
        self._mean = is_mean_pooled(model.module)
        self._layers = _layers(model, rows, products)
        self._products = {module: products.of(module, rows.work.dtype) for module in _frozen(model)}
        self._packed: Packed
        self._masks: FlatMasks | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have the model compute flat batches for as long as it lasts, however it ends."""
        with ExitStack() as stack:
            for module, layer in self._layers.items():
                stack.enter_context(replaced(module, partial(self._pass, layer)))
            for module, product in self._products.items():
                stack.enter_context(replaced(module, partial(multiplied, product=product)))
            for module in self._base.modules():
                if type(module) is nn.Dropout and module.p > 0:
                    stack.enter_context(replaced(module, partial(self._drop, module)))
            if not self._reading.images:
                config, before = self._base.config, self._base.config._attn_implementation
                stack.callback(setattr, config, "_attn_implementation", before)
                config._attn_implementation = NAME
                self._hook(stack)
            yield

    def logits(self, packed: Packed, masks: FlatMasks | None = None) -> torch.Tensor:
        """Logits (sequences, classes); of a language model (places that words are learned in, tokens). There
        is no dropout without ``masks``."""
        self._packed, self._masks = packed, masks
        logits: torch.Tensor
        if self._reading.images:
            logits = self._base(**packed.inputs).logits
            return logits
        words = {} if packed.kept is None else {"logits_to_keep": packed.kept}
        of_one_token = torch.zeros(len(packed.lengths), 1, dtype=torch.int64, device=self.rows.values.device)
        logits = self._base(input_ids=of_one_token, **words).logits
        return logits.reshape(-1, logits.shape[-1])

    def _hook(self, stack: ExitStack) -> None:
        hooks = [
            self._backbone.register_forward_pre_hook(self._flat_inputs, with_kwargs=True),
            self._backbone.register_forward_hook(self._read),
        ]
        pooler = getattr(self._backbone, "pooler", None)
        if pooler is not None:
            hooks.append(pooler.register_forward_pre_hook(self._read_before))
        for hook in hooks:
            stack.enter_context(hook)

    def _pass(self, layer: LowRank | Own, x: torch.Tensor) -> torch.Tensor:
        mask = None
        if self._masks is not None and isinstance(layer, LowRank) and isinstance(layer.dropout, nn.Dropout):
            mask = self._masks.of(layer.dropout, self.rows.work.dtype)
        rows = x.shape[:-1].numel()
        slots = self._packed.slots(rows, self.rows.work.dtype)
        return passed(x, layer, self._packed.spans(rows), slots, self.rows, mask)

    def _drop(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if self._masks is None else dropped(x, self._masks.of(layer, x.dtype))

    def _attention_masks(self, layer: nn.Module) -> Sequence[Mask] | None:
        return None if self._masks is None else self._masks.of_attention(layer, self.rows.work.dtype)

    def _flat_inputs(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        given = {**self._packed.inputs, "groups": self._packed.groups, "masks_of": self._attention_masks}
        if self._reading.from_pad:
            given["position_ids"] = self._positions_from_pad()
        if self._reading.last:
            given |= {"use_cache": False, "attention_mask": torch.ones_like(self._packed.inputs["input_ids"])}
        return (), given

    def _positions_from_pad(self) -> torch.Tensor:
        """Positions counted from the number after the padding token's, which itself stands in no count."""
        pad, ids = self._base.config.pad_token_id, self._packed.inputs["input_ids"][0]
        counted = ids.ne(pad).long()
        before = counted.cumsum(0) - counted
        begins = np.arange(len(ids))
        tokens = sum(self._packed.tokens)
        begins[:tokens] = np.repeat(self._packed.begins, self._packed.lengths)
        positions: torch.Tensor = (
            before - before[torch.from_numpy(begins).to(ids.device)] + 1
        ) * counted + pad
        return positions.unsqueeze(0)

    def _read_before(self, module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (self._read_tokens(args[0]),)

    def _read(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._packed.kept is not None:
            return output
        if self._mean:
            output.pooler_output = self._means(output.last_hidden_state)
        output.last_hidden_state = self._read_tokens(output.last_hidden_state)
        return output

    def _read_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """Of flat states (1, tokens, width) those that the head reads, (sequences, 1, width)."""
        at = torch.from_numpy(self._last() if self._reading.last else self._packed.begins)
        return states[0].index_select(0, at.to(states.device)).unsqueeze(1)

    def _last(self) -> NDArray[np.int64]:
        """Place of the last token of each sequence that is not the padding token."""
        tokens, begins = sum(self._packed.tokens), self._packed.begins
        ids = self._packed.inputs["input_ids"][0, :tokens].cpu().numpy()
        places = np.where(ids != self._base.config.pad_token_id, np.arange(len(ids)), 0)
        return np.maximum(np.maximum.reduceat(places, begins), begins)

    def _means(self, states: torch.Tensor) -> torch.Tensor:
        """The means of the states of each sequence, (sequences, width)."""
        lengths = torch.from_numpy(self._packed.lengths).to(states.device)
        of = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths)
        exact = torch.promote_types(states.dtype, torch.float32)
        sums = states.new_zeros(len(lengths), states.shape[-1], dtype=exact)
        sums = sums.index_add(0, of, states[0, : len(of)].to(exact))
        return (sums / lengths.unsqueeze(1)).to(states.dtype)


def _layers(model: AdapterModel, rows: Rows, products: Products) -> dict[nn.Module, LowRank | Own]:
    """Every layer of which clients have their own tensors, by the module in its place."""
    names = {id(model.parameter(name)): name for name in model.layout.names}
    found: dict[nn.Module, LowRank | Own] = {}
    for layer in model.linear_layers().values():
        (A,), (B,) = layer.lora_A.values(), layer.lora_B.values()
        found[layer] = LowRank.of(layer, names.pop(id(A.weight)), names.pop(id(B.weight)), rows, products)
    for module in model.module.modules():
        if isinstance(module, nn.Linear) and id(module.weight) in names:
            bias = None if module.bias is None else names[id(module.bias)]
            found[module] = Own.of(names[id(module.weight)], bias, rows)
    return found


def _frozen(model: AdapterModel) -> list[nn.Module]:
    """The linear layers in repeated blocks that no client has anything of."""
    own = {id(model.parameter(name)) for name in model.layout.names}
    under = {id(layer.get_base_layer()) for layer in model.linear_layers().values()}
    return [
        module
        for name, module in model.module.named_modules()
        if isinstance(module, LINEAR)
        and block(name)
        and id(module) not in under
        and id(module.weight) not in own
    ]

"""BERT whose pooled output is the mean of its tokens, as sentence encoders were trained (Sentence-BERT,
arXiv:1908.10084)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class SentenceBertConfig(BertConfig):  # type: ignore[misc]
    """The sizes of a BERT."""

    model_type = "sentence_bert"


class SentenceBertModel(BertModel):  # type: ignore[misc]
    """A BERT without BERT's pooler."""

    config_class = SentenceBertConfig

    def __init__(self, config: SentenceBertConfig) -> None:
        super().__init__(config, add_pooling_layer=False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPooling:
        """States (batch, tokens, width), and their mean (batch, width) over the tokens that
        ``attention_mask`` (batch, tokens) keeps."""
        states = super().forward(input_ids, attention_mask, **options).last_hidden_state
        kept = torch.ones_like(states[..., 0]) if attention_mask is None else attention_mask.to(states.dtype)
        mean = (states * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=mean)


AutoConfig.register(SentenceBertConfig.model_type, SentenceBertConfig)
AutoModel.register(SentenceBertConfig, SentenceBertModel)

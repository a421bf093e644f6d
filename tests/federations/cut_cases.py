"""Words of brief runs of split learning, and models that are cut in them."""

TINY = (
    "experiment=split/tiny", "federation.rounds=1", "train.steps=4", "train.batch_size=4", "run.report=false",
    "federation.train_examples=[12,12]", "federation.test_examples=6",
)  # fmt: skip
GPT2 = (
    "model.path=", "model.pretrained=false", "model.tokenizer=pkg://fedsa_lora/pretrained/stories260k",
    "+model.config={model_type: gpt2, n_layer: 5, n_embd: 32, n_head: 2, n_positions: 64, vocab_size: 512, "
    "bos_token_id: 1, eos_token_id: 1, initializer_range: 0.15}",
    "lora.targets=default", "lora.target_modules=[c_attn,c_fc,c_proj]", "task.template=alpaca",
)  # fmt: skip
NO_DEPTH = GPT2[3].replace("n_layer: 5, ", "")  # 12, as the class has it
OPT = (
    *GPT2[:3],
    "+model.config={model_type: opt, num_hidden_layers: 5, hidden_size: 32, num_attention_heads: 2, "
    "ffn_dim: 64, word_embed_proj_dim: 32, vocab_size: 512, bos_token_id: 1, eos_token_id: 1}",
    "lora.targets=default", "task.template=alpaca",
)  # fmt: skip
TUNED = ("lora.targets=default", "lora.target_modules=[q_proj,v_proj,lm_head]")  # the head is tied
MODELS = {"llama": (), "gpt2": GPT2, "tuned head": TUNED}

"""The OPT family as Keras 3 models: tokenizer, preprocessor, backbone and causal language model."""

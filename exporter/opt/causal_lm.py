"""`OPTCausalLM`: the OPT language model with `fit`, `evaluate`, `predict` and `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from exporter.opt import pipeline
from exporter.opt.backbone import OPTBackbone
from exporter.opt.keras_backend import keras
from exporter.opt.keras_decoder import KerasDecoder
from exporter.opt.preprocessor import OPTCausalLMPreprocessor
from runtime import samplers
from runtime.generator import Generator


class CausalLM(keras.Model):
    """Base of causal language models: compile defaults, training on strings, generation."""

    backbone: OPTBackbone
    preprocessor: OPTCausalLMPreprocessor | None
    _decoder: KerasDecoder | None

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs: Any) -> CausalLM:
        """Builds the model of a preset; called on `CausalLM`, it picks the class by the preset.

        Args:
            preset: a built-in preset name or the path of a preset folder.
            load_weights: if `False`, the weights stay randomly initialized.
            **kwargs: `preprocessor=None` to go without; values of the backbone's configuration.
        """
        from exporter.presets.loading import load_causal_lm

        return load_causal_lm(cls, preset, load_weights=load_weights, **kwargs)

    def save_to_preset(self, folder: str | Path) -> None:
        """Writes a preset folder in keras-hub's format: configuration, tokenizer and weights."""
        from exporter.presets.saving import save_causal_lm

        save_causal_lm(self, folder)

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        sampler: Any = "top_k",
        **kwargs: Any,
    ) -> None:
        """Configures training and generation.

        Args:
            optimizer: `"auto"` is `keras.optimizers.Adam(2e-5)`.
            loss: `"auto"` is sparse categorical cross-entropy from logits.
            weighted_metrics: `"auto"` is sparse categorical accuracy.
            sampler: a name, a `runtime.samplers.Sampler` or its serialized configuration.
            **kwargs: see `keras.Model.compile`.
        """
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.Adam(2e-5)
        if isinstance(loss, str) and loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if isinstance(weighted_metrics, str) and weighted_metrics == "auto":
            weighted_metrics = [keras.metrics.SparseCategoricalAccuracy()]
        super().compile(optimizer=optimizer, loss=loss, weighted_metrics=weighted_metrics, **kwargs)
        self.sampler = samplers.get(sampler)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *args: Any,
        sample_weight: Any = None,
        validation_data: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        **kwargs: Any,
    ) -> Any:
        """`keras.Model.fit` on strings (with a preprocessor) or on token dictionaries.

        `x` may be a string list or array, a token dictionary, or a `tf.data.Dataset` of batches of
        either. Lists and arrays are shuffled unless `shuffle=False`; a dataset is taken as it comes.
        """
        if validation_split:
            (x, y, sample_weight), validation_data = pipeline.split(
                (x, y, sample_weight), validation_split
            )
        data = pipeline.dataset(
            self.preprocessor, x, y, sample_weight, batch_size=batch_size, shuffle=shuffle
        )
        if validation_data is not None:
            parts = validation_data if isinstance(validation_data, tuple) else (validation_data,)
            size = None if isinstance(parts[0], tf.data.Dataset) else batch_size
            validation_data = pipeline.dataset(self.preprocessor, *parts, batch_size=size)
        return super().fit(
            data, None, None, *args, validation_data=validation_data, shuffle=False, **kwargs
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *args: Any,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`keras.Model.evaluate` on strings (with a preprocessor) or on token dictionaries."""
        if kwargs.get("_use_cached_eval_dataset"):  # inside fit, which has preprocessed it
            return super().evaluate(x, y, batch_size, *args, sample_weight=sample_weight, **kwargs)
        data = pipeline.dataset(self.preprocessor, x, y, sample_weight, batch_size=batch_size)
        return super().evaluate(data, None, None, *args, **kwargs)

    def predict(self, x: Any, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.predict`: logits [batch, sequence, vocabulary] of strings or tokens."""
        data = pipeline.dataset(self.preprocessor, x, batch_size=batch_size)
        return super().predict(data, None, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.train_on_batch` on strings or on token dictionaries."""
        x, y, sample_weight = pipeline.batch(self.preprocessor, x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.test_on_batch` on strings or on token dictionaries."""
        x, y, sample_weight = pipeline.batch(self.preprocessor, x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """`keras.Model.predict_on_batch` on strings or on token dictionaries."""
        return super().predict_on_batch(pipeline.batch(self.preprocessor, x, None, None)[0])

    def _generator(self) -> Generator:
        tokenizer = self.preprocessor.tokenizer if self.preprocessor else None
        positions = self.backbone.max_sequence_length
        length = self.preprocessor.sequence_length if self.preprocessor else positions
        if self._decoder is None:
            self._decoder = KerasDecoder(self.backbone)
        return Generator(
            self._decoder, tokenizer, sampler=self.sampler, max_length=min(length, positions)
        )

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
    ) -> Any:
        """Generates text; see `runtime.Generator.generate`, which runs the loop."""
        return self._generator().generate(
            inputs,
            max_length=max_length,
            stop_token_ids=stop_token_ids,
            strip_prompt=strip_prompt,
        )

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yields the text of one prompt piece by piece; see `runtime.Generator.stream`."""
        return self._generator().stream(prompt, **options)


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTCausalLM(CausalLM):
    """An end-to-end OPT model for causal language modeling, as `keras_hub.models.OPTCausalLM`.

    A causal language model predicts the next token from those before it; this one trains on plain
    text with `fit()` and writes text with `generate()`, with the sampler given to `compile()`
    (top-k by default). With a preprocessor it takes strings, without one token dictionaries.

    Args:
        backbone: an `OPTBackbone`.
        preprocessor: an `OPTCausalLMPreprocessor` or `None`.

    Call arguments:
        a dictionary of `token_ids` and `padding_mask` [batch, sequence]. Returns the logits
        [batch, sequence, vocabulary].
    """

    backbone_cls = OPTBackbone
    preprocessor_cls = OPTCausalLMPreprocessor

    def __init__(
        self,
        backbone: OPTBackbone,
        preprocessor: OPTCausalLMPreprocessor | None = None,
        **kwargs: Any,
    ) -> None:
        # === Functional Model ===
        inputs = backbone.input
        hidden_states = backbone(inputs)
        outputs = backbone.logits(hidden_states)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        self._decoder = None
        self.compile()

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "backbone": keras.saving.serialize_keras_object(self.backbone),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> OPTCausalLM:
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        return cls(backbone=backbone, **config)
